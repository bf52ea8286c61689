"""The engine loop of an instance: vLLM's own, with the llumlet's hooks between its steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
from vllm.config import VllmConfig
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState
from vllm.v1.engine.utils import EngineZmqAddresses
from vllm.v1.executor import Executor
from vllm.v1.request import Request

from llumnix.config import InstancesConfig, MigrationConfig
from llumnix.core.handover.epochs import split_engine_id
from llumnix.core.handover.settings import HandoverSettings
from llumnix.core.load import InstanceReport
from llumnix.engine.inbox import Inbox
from llumnix.engine.llumlet import Llumlet
from llumnix.engine.long_calls import may_wait
from llumnix.engine.loop_clock import LoopClock
from llumnix.engine.migration.port import MigrationPort
from llumnix.engine.migration.resume import Resumer
from llumnix.engine.open_transports import open_transports
from llumnix.engine.outbox import DropApiServer, DropPeer, Outbox
from llumnix.engine.scheduler_view import SchedulerView
from llumnix.errors import RefusedError
from llumnix.log import get_logger
from llumnix.wire import Endpoints, NewPriority, NoticeFrom, PeerAddress, RequestTable, ToManager

logger = get_logger(__name__)

REPORT_INTERVAL_S = 0.020
REPORT_COST_LIMIT = 0.005
"""At most this part of the loop's time goes into reports: deep queues are reported less often."""
_AVERAGE_WEIGHT = 0.2

Step = Callable[[], tuple[dict[int, EngineCoreOutputs] | None, bool]]


@dataclass(frozen=True, slots=True)
class OnEngineThread:
    """A call that the inbox asks the engine loop to make between two steps."""

    call: Callable[[], object]


class InstanceCore(EngineCoreProc):
    """EngineCoreProc whose sockets, reports and extra calls are the llumlet's.

    Threads: the engine thread (the one that calls run_busy_loop) owns the scheduler; the inbox and outbox
    threads own the sockets. Between them there are only `input_queue` and `output_queue`.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        executor_class: type[Executor],
        *,
        uid: int,
        host: str,
        endpoints: Endpoints,
        health: InstancesConfig,
        migration: MigrationConfig,
        handover: HandoverSettings,
    ) -> None:
        """`host`: the address of this node that other nodes reach; `health`: when its loop counts as hung."""
        self.uid = uid
        self.host = host
        self._migration = migration
        self._handover = handover
        self.endpoints = endpoints
        self.clock = LoopClock()
        self.health = health
        self.taken: dict[int, int] = {}
        self._next_report_at = 0.0
        self._step_ms = 0.0
        self._tokens_per_s = 0.0
        self._tokens_since = 0
        self._rate_since = time.monotonic()
        self._had_rows = True
        vllm_config.parallel_config.reconfigure_for_independent_dp_rank()
        super().__init__(
            vllm_config,
            local_client=True,
            handshake_address="",
            executor_class=executor_class,
            log_stats=True,
            engine_index=uid,
        )
        self._vllm_step: Step = self.step if self.batch_queue is None else self.step_with_batch_queue
        self.step_fn = self._counted_step

    # ---- what vLLM's constructor calls ------------------------------------------------------------------

    @contextmanager
    def _perform_handshakes(self, *_: Any) -> Generator[EngineZmqAddresses, None, None]:
        """All addresses are known before the process starts (as in vLLM's EngineCoreActorMixin)."""
        servers = self.endpoints.api_servers
        yield EngineZmqAddresses(inputs=[s.input for s in servers], outputs=[s.output for s in servers])

    def process_input_sockets(
        self, input_addresses: list[str], coord: str | None, identity: bytes, ready_event: threading.Event
    ) -> None:
        self.clock.workers = tuple(w.proc.pid for w in getattr(self.model_executor, "workers", ()))
        self.port = MigrationPort(self)
        self.resumer = Resumer(self, self.port.target, self.on_engine_thread, self._cannot_resume)
        self.view = SchedulerView(self.scheduler, self._in_no_queue)
        self._transports = open_transports(
            self, self.port, self._migration.backend, self.host, self.endpoints
        )
        self.llumlet = Llumlet(
            self.uid,
            self.port,
            self._transports,
            self._handover,
            on_engine_thread=self.on_engine_thread,
            send=self.output_queue.put_nowait,
            abort=self.abort_requests,
            set_priority=self.view.set_priority,
            load=self._load,
        )
        self.publish_report(time.monotonic())
        ready = msgspec.msgpack.encode(self._make_ready_response())
        Inbox(self, identity, ready).run(ready_event)

    def process_output_sockets(self, output_paths: list[str], coord: str | None, engine_index: int) -> None:
        Outbox(self).run()

    # ---- engine thread ----------------------------------------------------------------------------------

    def run_busy_loop(self) -> None:
        self.clock.thread = threading.current_thread()
        super().run_busy_loop()

    @property
    def lease_s(self) -> float:
        """How long the instance goes on without any contact to the cluster."""
        return self._migration.lease_s

    def on_engine_thread(self, call: Callable[[], object]) -> None:
        """Have the engine loop make a call between two steps; callable from any thread."""
        self.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, OnEngineThread(call)))

    def _handle_client_request(self, request_type: EngineCoreRequestType, request: Any) -> None:
        self.clock.turned_at = time.monotonic()
        if isinstance(request, OnEngineThread):
            request.call()
            if self.llumlet.is_busy and not self.has_work():
                self.llumlet.after_step(time.monotonic())
            return
        if request_type == EngineCoreRequestType.UTILITY:
            _, _, method, args = request
            with self.clock.call(may_wait=may_wait(method, args)):
                super()._handle_client_request(request_type, request)
            return
        super()._handle_client_request(request_type, request)
        if request_type == EngineCoreRequestType.ADD:
            self.count_taken(request[0].client_index)

    def _process_engine_step(self) -> bool:
        started = time.monotonic()
        self.clock.turned_at = started
        self.clock.step_since = started
        self.llumlet.before_step()
        executed = super()._process_engine_step()
        now = time.monotonic()
        self.clock.step_since = None
        self.clock.turned_at = now
        if executed:
            self._step_ms += _AVERAGE_WEIGHT * ((now - started) * 1e3 - self._step_ms)
        if self.resumer.is_waiting:
            self.resumer.advance()
        if self.llumlet.is_busy:
            self.llumlet.after_step(now)
        if now >= self._next_report_at:
            self.publish_report(now)
        return executed

    def _in_no_queue(self) -> Iterator[Request]:
        """Requests of this instance that the scheduler's queues do not hold at this moment."""
        return chain(self.port.source.frozen_in_no_queue(), self.resumer.requests())

    def _process_input_queue(self) -> None:
        if not self.has_work():
            # About to sleep: what was just finished must not look busy until the next request.
            self.publish_report(time.monotonic())
        super()._process_input_queue()

    def resume(self, request: EngineCoreRequest, output_token_ids: list[int]) -> None:
        """Go on with a request that ran elsewhere, from the tokens its client has."""
        self.count_taken(request.client_index)
        if not self.is_running():
            return  # with the last words it goes on elsewhere
        try:
            self.resumer.resume(request, output_token_ids)
        except RefusedError as error:
            self._cannot_resume(request.request_id, request.client_index, str(error))

    def _cannot_resume(self, request_id: str, api_server: int, reason: str) -> None:
        logger.warning("request %s cannot be resumed: %s", request_id, reason)
        self._send_error_outputs_to_client([request_id], api_server)

    def set_priority(self, request_id: str, priority: int) -> bool:
        """Change a request's engine priority, here and for its later runs elsewhere; False if it is gone."""
        request = self.scheduler.requests.get(request_id)
        if request is None or not self.view.set_priority(request_id, priority):
            return False
        self.llumlet.priority_changed(request_id, priority)
        changed = NewPriority(split_engine_id(request_id)[0], priority)
        self.output_queue.put_nowait((request.client_index, NoticeFrom(self.uid, priority=changed)))
        return True

    def abort_requests(self, request_ids: list[str]) -> None:
        super().abort_requests(request_ids)
        self.llumlet.requests_aborted(request_ids)
        if self.resumer.is_waiting:
            self.resumer.forget(request_ids)

    def address_is(self, letters: str) -> None:
        """Where other llumlets reach this one."""
        self.address = PeerAddress(letters, self._transports.address)

    def peer_gone(self, uid: int, reason: str) -> None:
        """That instance is dead."""
        self.llumlet.peer_lost(uid, reason)
        self.output_queue.put_nowait(DropPeer(uid))

    def count_taken(self, api_server: int) -> None:
        self.taken[api_server] = self.taken.get(api_server, 0) + 1

    def publish_report(self, now: float) -> InstanceReport:
        """Hand the load to the outbox, and set when the next one is due by what this one cost."""
        self._measure_rate(now)
        report = self._load()
        self.output_queue.put_nowait(report)
        cost_s = time.monotonic() - now
        self._next_report_at = now + min(0.5, max(REPORT_INTERVAL_S, cost_s / REPORT_COST_LIMIT))
        return report

    def _load(self) -> InstanceReport:
        moves = self.llumlet.moves_under_way()
        return self.view.load(self.uid, self._step_ms, self._tokens_per_s, self.taken, moves)

    def tick(self) -> None:
        """Twice a second: the table of requests, and while idle the report that no step publishes."""
        self.llumlet.after_step(time.monotonic())
        if not self.has_work():
            self.publish_report(time.monotonic())
        self.tell_requests()

    def tell_requests(self) -> None:
        """The table of requests to the manager, unless it is as empty as it was."""
        rows = self.view.rows()
        if rows or self._had_rows:
            self.tell_manager(RequestTable(self.uid, rows))
        self._had_rows = bool(rows)

    def forget_api_server(self, api_server: int) -> None:
        """Its process is gone: nobody waits for these requests, nor for what is queued for it."""
        # Before its requests are aborted: a migration must not pass such an abort on to a live hop.
        self.llumlet.owner_lost(api_server)
        self.abort_requests(self.view.requests_of(api_server))
        self.output_queue.put_nowait(DropApiServer(api_server))

    def replay(self, method: str, args: Sequence[Any]) -> None:
        """Take on engine-wide state that was set before this instance joined; a failure ends the instance.

        Not so for an adapter, which is only loaded ahead: every request brings its own along, and vLLM tells
        no engine when one is unloaded, so that its files may be gone.
        """
        call = getattr(self, method)
        try:
            with self.clock.call(may_wait=may_wait(method, args)):
                call(*self._convert_msgspec_args(call, args))
        except Exception:
            if method != "add_lora":
                raise
            logger.warning("an adapter was not loaded ahead", exc_info=True)

    def tell_manager(self, message: ToManager) -> None:
        """Send a message to the manager, behind all outputs so far; callable from any thread."""
        self.output_queue.put_nowait(message)

    def stop(self) -> None:
        """End the loop after this turn (vLLM's shutdown_timeout 0); what runs goes on elsewhere."""
        self.llumlet.close("is being stopped")
        self.shutdown_state = EngineShutdownState.REQUESTED

    # An end in good order is no end of the requests: without an answer here, their owners take the last
    # words as they take a death, and resume them. vLLM would answer each with an abort.

    def _send_abort_outputs(self, aborted_reqs: list[Request]) -> None:
        if self.is_running():  # a pause, or sleep
            super()._send_abort_outputs(aborted_reqs)

    def _reject_add_in_shutdown(self, request: Request) -> bool:
        return not self.is_running()

    def _reject_utility_in_shutdown(self, client_idx: int, call_id: int, method_name: str) -> bool:
        return not self.is_running()

    def _counted_step(self) -> tuple[dict[int, EngineCoreOutputs] | None, bool]:
        outputs, executed = self._vllm_step()
        for of_one_server in (outputs or {}).values():
            self._tokens_since += sum(len(output.new_token_ids) for output in of_one_server.outputs)
        return outputs, executed

    def _measure_rate(self, now: float) -> None:
        elapsed = now - self._rate_since
        if elapsed >= 0.5:
            self._tokens_per_s = self._tokens_since / elapsed
            self._tokens_since = 0
            self._rate_since = now
