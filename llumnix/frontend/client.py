"""ClusterClient: vLLM's engine-core client over many instances that come and go."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from vllm.config import VllmConfig
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine.core_client import AsyncMPClient, BackgroundResources
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from llumnix.core.choice import Hold
from llumnix.core.dispatch import Dispatcher
from llumnix.core.handover.epochs import split_engine_id
from llumnix.core.handover.settings import HandoverSettings
from llumnix.core.hold_queue import HoldQueue
from llumnix.core.load import InstanceReport
from llumnix.frontend.engine_calls import EngineCalls
from llumnix.frontend.held_news import HeldNews
from llumnix.frontend.membership import Membership
from llumnix.frontend.message_order import MessageOrder
from llumnix.frontend.refusals import ServiceUnavailable
from llumnix.frontend.request_book import NotPlaced, Placed, RequestBook
from llumnix.frontend.silence import SilenceWatch
from llumnix.log import get_logger
from llumnix.sockets import guard, open_async_socket
from llumnix.wire import (
    HELLO,
    JOIN,
    RESUME,
    TAG_LAST_WORDS,
    TAG_NOTICE,
    TAG_OUTPUTS,
    TAG_REPORT,
    ApiServerAddress,
    CurveKeys,
    NoticeFrom,
    Table,
    origin_of,
)

logger = get_logger(__name__)

_TICK_S = 0.1


class ClusterClient(AsyncMPClient):
    """Routes each request to the instance that the dispatcher chooses, and its outputs back.

    Whatever becomes of instances, a request goes on: the book resumes it elsewhere from the tokens that its
    client has. All methods run on the API server's event loop.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        *,
        address: ApiServerAddress,
        curve: CurveKeys | None,
        dispatcher: Dispatcher,
        held: HoldQueue,
        handover: HandoverSettings,
        silence_s: float,
    ) -> None:
        """`silence_s`: without a report for so long, an instance is given up, told by `on_silent`."""
        # MPClient.__init__ would start engines, or block until rank 0 says READY; we build what it builds.
        self.vllm_config = vllm_config
        self.client_index = address.index
        self.membership = Membership()
        self.dispatcher = dispatcher
        self._silence = SilenceWatch(silence_s, time.monotonic())
        self._order = MessageOrder()
        self._held = held
        self.engine_ranks_managed = [0]
        self.outputs_queue: asyncio.Queue[EngineCoreOutputs | Exception] = asyncio.Queue()
        self._book = RequestBook(
            handover, held, place=self._place, abort=self._abort_at, deliver=self._deliver, fail=self._fail
        )
        self.calls = EngineCalls(
            address.index,
            self.membership,
            lambda uid, call: self._send_request(uid, EngineCoreRequestType.UTILITY, call),
        )
        self.on_failed: Callable[[Iterable[str], Exception], None] = lambda ids, error: None
        self.on_lost: Callable[[int, str], None] = lambda uid, reason: None
        self.on_silent: Callable[[int], object] = lambda uid: None
        self.held_news = HeldNews(address.index, held, self._book)
        self.first_usable: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        """The ready response of the first instance that can be reached."""
        self.encoder = MsgpackEncoder()
        self.decoder = MsgpackDecoder(EngineCoreOutputs)
        self._decode_report = msgspec.msgpack.Decoder(InstanceReport).decode
        self._decode_notice = msgspec.msgpack.Decoder(NoticeFrom).decode
        self._open(address, curve)
        self._tasks = [
            asyncio.create_task(self._receive_joins(), name="cluster-client-joins"),
            asyncio.create_task(self._receive_outputs(), name="cluster-client-outputs"),
            asyncio.create_task(self._keep_time(), name="cluster-client-time"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)

    def _open(self, address: ApiServerAddress, curve: CurveKeys | None) -> None:
        context: zmq.Context[Any] = zmq.Context(io_threads=2)
        self.ctx = zmq.asyncio.Context(context)
        self._guard = guard(self.ctx, curve)
        self.resources = BackgroundResources(ctx=context)
        self._finalizer = weakref.finalize(self, self.resources)
        self._requests = self.input_socket = self.resources.input_socket = open_async_socket(
            self.ctx, zmq.ROUTER, address.input, bind=True, curve=curve
        )
        self.resources.output_socket = open_async_socket(
            self.ctx, zmq.PULL, address.output, bind=True, curve=curve
        )

    def shutdown(self, timeout: float | None = None) -> None:
        for task in self._tasks:
            task.get_loop().call_soon_threadsafe(task.cancel)
        if self._guard is not None:
            self._guard.stop()
            self._guard = None
        super().shutdown(timeout)

    def _ensure_output_queue_task(self) -> None:
        """The receivers run from the start; vLLM's own reader of one engine's socket must not."""

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.outputs_queue.put_nowait(RuntimeError(f"{task.get_name()} failed: {task.exception()!r}"))

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._book.place_held(time.monotonic())
            self._book.tick(time.monotonic())
            self._give_up_silent(time.monotonic())
            self.held_news.tell(time.monotonic())

    # ---- instances --------------------------------------------------------------------------------------

    def num_queued(self) -> int:
        """Requests that do not run yet, here or at any instance."""
        return len(self._held) + self.dispatcher.queued()

    def num_unfinished(self) -> int:
        return len(self._book)

    def is_serving(self) -> bool:
        return any(entry.entry.open for entry in self.membership.usable())

    def apply_table(self, table: Table) -> tuple[int, ...]:
        """Take the manager's table; returns the uids that are new."""
        change = self.membership.apply(table)
        for uid in change.came:
            if self.membership.is_usable(uid):
                self._send(uid, (HELLO,))
        self._refresh_dispatcher()
        for uid in change.left:
            self._drop_instance(uid, "it left the cluster", fenced=True)
        return change.came

    def instance_lost(self, uid: int, reason: str) -> None:
        """An instance is dead, whoever says so first."""
        if self.membership.lost(uid):
            self._refresh_dispatcher()
            self._drop_instance(uid, reason, fenced=True)
            self.on_lost(uid, reason)

    def _give_up_silent(self, now: float) -> None:
        """What still runs there is of an older attempt from here on; its outputs are dropped."""
        usable = [entry.entry.uid for entry in self.membership.usable()]
        for uid, silence_s in self._silence.silent(usable, now).items():
            self.on_silent(uid)
            self.instance_lost(uid, f"no report for {silence_s:.1f} s")

    def _drop_instance(self, uid: int, reason: str, *, fenced: bool) -> None:
        if fenced:
            self._order.forget(uid)
        self.calls.instance_lost(uid, self.membership.name(uid), reason)
        self._book.instance_lost(uid, reason, time.monotonic(), fenced=fenced)

    def _refresh_dispatcher(self) -> None:
        usable = self.membership.usable()
        self.dispatcher.set_table([entry.entry for entry in usable])
        if usable and not self.first_usable.done():
            self.first_usable.set_result(usable[0].ready)
        self._book.place_held(time.monotonic())

    async def _receive_joins(self) -> None:
        while True:
            identity, kind = await self._requests.recv_multipart()
            uid = int.from_bytes(identity, "little")
            if kind != JOIN:
                raise AssertionError(f"instance #{uid} sent {kind!r} on the request channel")
            again = self.membership.joined(uid)
            if again:
                self.dispatcher.reset_sent(uid)
            if self.membership.is_known(uid):
                self._send(uid, (HELLO,))
                self._refresh_dispatcher()
            if again:
                # The instance has aborted what it had of us when the connection broke.
                self._drop_instance(uid, "the connection to it broke", fenced=False)

    # ---- requests held ----------------------------------------------------------------------------------

    def set_priority(self, of_engine: str, engine_priority: int) -> bool:
        """Give a request that is held here another class; False if it is not."""
        return self._book.set_priority(split_engine_id(of_engine)[0], engine_priority)

    # ---- outputs ----------------------------------------------------------------------------------------

    async def _receive_outputs(self) -> None:
        socket = self.resources.output_socket
        assert socket is not None
        while True:
            tag, sender, *payload = await socket.recv_multipart(copy=False)
            kind = bytes(tag.buffer)
            uid, number = origin_of(sender.buffer)
            if not self._order.take(uid, number) and self.membership.is_known(uid):
                # Tokens of it would be missing without a trace.
                logger.warning("output of instance %s was lost on its way", self.membership.name(uid))
                self._drop_instance(uid, "output of it was lost on its way", fenced=False)
            if kind == TAG_OUTPUTS:
                self._take_outputs(self.decoder.decode(payload))
            elif kind == TAG_REPORT:
                self._take_report(self._decode_report(payload[0].buffer))
                self._book.place_held(time.monotonic())
            elif kind == TAG_NOTICE:
                news = self._decode_notice(payload[0].buffer)
                for notice in (news.moved, news.adopted):
                    if notice is not None:
                        self._book.notice(news.uid, notice, time.monotonic())
                if news.priority is not None:
                    self._book.priority_changed(news.priority.request_id, news.priority.priority)
            elif kind == TAG_LAST_WORDS:
                self.instance_lost(uid, bytes(payload[0].buffer).decode())
            else:
                raise AssertionError(f"an instance sent a message with the unknown tag {kind!r}")

    def _take_report(self, report: InstanceReport) -> None:
        self._silence.heard(report.uid, time.monotonic())
        self.dispatcher.observe(report)

    def _take_outputs(self, outputs: EngineCoreOutputs) -> None:
        uid = outputs.engine_index
        if outputs.utility_output is not None:
            self.calls.answer(outputs.utility_output)
            return
        outputs.outputs = self._book.take(uid, outputs.outputs, time.monotonic())
        number = self.membership.number(uid)
        if number is None:  # it has left: nobody counts what it still says of itself
            outputs.scheduler_stats = None
        outputs.engine_index = number or 0
        if outputs.outputs or outputs.scheduler_stats:
            self.outputs_queue.put_nowait(outputs)

    def _deliver(self, outputs: list[EngineCoreOutput]) -> None:
        """Outputs that waited for earlier ones."""
        self.outputs_queue.put_nowait(EngineCoreOutputs(outputs=outputs))

    def _fail(self, request_id: str, reason: str) -> None:
        self.on_failed([request_id], ServiceUnavailable(reason))

    # ---- requests ---------------------------------------------------------------------------------------

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        request.client_index = self.client_index
        session = self._book.run_of(request.request_id)
        if session is not None:
            # Further input of a streaming session: it goes where the session is.
            uid, of_engine = session
            more = msgspec.structs.replace(request, request_id=of_engine)
            self._send_request(uid, EngineCoreRequestType.ADD, more)
            return
        refusal = self._book.add(request, time.monotonic())
        if refusal is not None:
            raise ServiceUnavailable(refusal)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.abort_now(request_ids)

    def abort_now(self, request_ids: Iterable[str]) -> None:
        """Stop requests wherever they run; unknown ones are none of ours any more."""
        self._book.abort(request_ids, time.monotonic())

    def _place(
        self,
        request: EngineCoreRequest,
        output_tokens: tuple[int, ...],
        prefix: tuple[int, ...],
        *,
        resumed: bool,
    ) -> Placed | NotPlaced:
        num_tokens = len(request.prompt_token_ids or ()) + len(output_tokens)
        unreachable: set[int] = set()
        while True:
            choice = self.dispatcher.choose(
                num_tokens, request.priority, prefix=prefix, exclude=unreachable, resumed=resumed
            )
            if isinstance(choice, Hold):
                why = f"no instance can take requests now: {choice.reason}"
                return NotPlaced(why, choice.is_any_open, choice.is_any_refuge)
            encoded = self.encoder.encode(request)
            frames = (EngineCoreRequestType.ADD.value, *encoded)
            if output_tokens:
                frames = (RESUME, msgspec.msgpack.encode(output_tokens), *encoded)
            if self._send(choice.uid, frames):
                self.dispatcher.sent(choice.uid, num_tokens, request.priority, prefix)
                return Placed(choice.uid)
            unreachable.add(choice.uid)

    def _abort_at(self, uid: int, of_engine: list[str]) -> None:
        if self.membership.is_usable(uid):
            self._send_request(uid, EngineCoreRequestType.ABORT, of_engine)

    def _send_request(self, uid: int, kind: EngineCoreRequestType, payload: Any) -> bool:
        return self._send(uid, (kind.value, *self.encoder.encode(payload)))

    def _send(self, uid: int, frames: Sequence[Any]) -> bool:
        """False if there is no connection to that instance at this moment."""
        sent: Any = self._requests.send_multipart((uid.to_bytes(2, "little"), *frames), copy=False)
        # zmq.asyncio sends at once where it can, and with unlimited queues it can: the future is done.
        error = sent.exception() if sent.done() else None
        if error is not None:
            logger.warning("cannot reach instance %s: %s", self.membership.name(uid), error)
        return error is None

    # ---- engine-wide calls ------------------------------------------------------------------------------

    async def call_utility_async(self, method: str, *args: Any) -> Any:
        return await self.calls.as_one(method, args)

    async def call_utility_all_async(self, method: str, *args: Any) -> list[Any]:
        return await self.calls.on_all(method, args)
