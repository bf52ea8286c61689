"""The llumlet's receiving thread: requests from API servers, commands from the manager, lost connections."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import zmq
from vllm.multimodal.cache import MultiModalCacheMissError
from vllm.v1.engine import EngineCoreRequest, EngineCoreRequestType
from vllm.v1.serial_utils import MsgpackDecoder
from zmq.utils.monitor import recv_monitor_message

from llumnix.engine.lease import Lease
from llumnix.engine.peers import from_frames
from llumnix.errors import RefusedError
from llumnix.log import get_logger
from llumnix.sockets import guard, open_socket
from llumnix.wire import (
    HELLO,
    JOIN,
    RESUME,
    Done,
    EngineServes,
    EngineUp,
    FromManager,
    Move,
    MoveAway,
    PeerGone,
    Replay,
    SetPriority,
    StopEngine,
    TellRequests,
    codec,
)

if TYPE_CHECKING:
    from llumnix.engine.instance import InstanceCore

logger = get_logger(__name__)

_CONTACT = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
_LEASE_CHECK_MS = 500


class Inbox:
    """Feeds the engine loop's input queue; runs on a thread of its own until the process ends."""

    def __init__(self, core: InstanceCore, identity: bytes, ready: bytes) -> None:
        self._core = core
        self._identity = identity
        self._ready = ready
        self._add_decoder = MsgpackDecoder(EngineCoreRequest)
        self._generic_decoder = MsgpackDecoder()
        self._codec = codec()
        self._lease = Lease(core.lease_s, time.monotonic())

    def run(self, ready_event: threading.Event) -> None:
        endpoints = self._core.endpoints
        with ExitStack() as stack:
            context = stack.enter_context(zmq.Context())
            poller = zmq.Poller()
            monitors: dict[zmq.Socket[bytes], int | None] = {}
            inputs: dict[int, zmq.Socket[bytes]] = {}
            for server in endpoints.api_servers:
                socket = stack.enter_context(self._open(context, server.input))
                monitor = stack.enter_context(socket.get_monitor_socket(_CONTACT))
                inputs[server.index] = socket
                monitors[monitor] = server.index
                socket.send(JOIN)
                poller.register(socket, zmq.POLLIN)
                poller.register(monitor, zmq.POLLIN)
            control = stack.enter_context(self._open(context, endpoints.control.commands))
            of_control = stack.enter_context(control.get_monitor_socket(_CONTACT))
            monitors[of_control] = None
            poller.register(control, zmq.POLLIN)
            poller.register(of_control, zmq.POLLIN)
            letters = stack.enter_context(self._open_letters(context))
            poller.register(letters, zmq.POLLIN)
            self._core.address_is(letters.getsockopt_string(zmq.LAST_ENDPOINT))
            up = EngineUp(self._core.uid, self._ready, self._core.address)
            control.send(self._codec.encoder.encode(up))
            ready_event.set()
            while True:
                ready = dict(poller.poll(_LEASE_CHECK_MS))
                self._check_lease()
                for monitor, index in monitors.items():
                    if monitor in ready and self._has_lost(monitor) and index is not None:
                        self._lost_api_server(index, inputs[index])
                if control in ready:
                    self._obey(control, self._codec.from_manager.decode(control.recv()))
                if letters in ready:
                    letter = from_frames(letters.recv_multipart())
                    self._core.llumlet.foresee(letter)
                    self._core.on_engine_thread(partial(self._core.llumlet.hear, letter))
                for index, socket in inputs.items():
                    if socket in ready:
                        self._take_in(index, socket.recv_multipart(copy=False))

    def _open(self, context: zmq.Context[Any], address: str) -> zmq.Socket[bytes]:
        return open_socket(
            context,
            zmq.DEALER,
            address,
            bind=False,
            curve=self._core.endpoints.curve,
            identity=self._identity,
        )

    def _open_letters(self, context: zmq.Context[Any]) -> zmq.Socket[bytes]:
        """Where other llumlets write to this one; guarded like everything that listens."""
        endpoints = self._core.endpoints
        if endpoints.curve is None:
            address = f"ipc://{endpoints.private_dir}/peer{self._core.uid}"
        else:
            address = f"tcp://{self._core.host}:*"
            self._guard = guard(context, endpoints.curve)
        return open_socket(context, zmq.PULL, address, bind=True, curve=endpoints.curve)

    def _has_lost(self, monitor: zmq.Socket[bytes]) -> bool:
        """Take in what became of a connection; whether it is gone."""
        event = recv_monitor_message(monitor)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._lease.opened(monitor)
            return False
        self._lease.lost(monitor, time.monotonic())
        return True

    def _check_lease(self) -> None:
        if self._lease.is_over(time.monotonic()):
            logger.critical("no contact to the cluster (migration.lease_s): the instance ends itself")
            # The loop may hang, and nobody is there to whom an orderly end would be of use.
            os._exit(1)

    def _take_in(self, index: int, frames: list[zmq.Frame]) -> None:
        kind, *data = frames
        if bytes(kind.buffer) == HELLO:
            self._core.on_engine_thread(lambda: self._core.taken.pop(index, None))
            return
        if bytes(kind.buffer) == RESUME:
            tokens, *encoded = data
            request = self._add_decoder.decode(encoded)
            self._core.on_engine_thread(
                partial(self._core.resume, request, msgspec.msgpack.decode(tokens.buffer, type=list[int]))
            )
            return
        request_type = EngineCoreRequestType(bytes(kind.buffer))
        if request_type == EngineCoreRequestType.ADD:
            request = self._add_decoder.decode(data)
            try:
                payload: Any = self._core.preprocess_add_request(request)
            except MultiModalCacheMissError as error:
                self._core._handle_mm_cache_miss(request, error)
                self._core.on_engine_thread(lambda: self._core.count_taken(index))
                return
            except Exception:  # noqa: BLE001 - vLLM answers and logs it, as in its own loop
                self._core._handle_request_preproc_error(request)
                self._core.on_engine_thread(lambda: self._core.count_taken(index))
                return
        else:
            payload = self._generic_decoder.decode(data)
            if request_type == EngineCoreRequestType.ABORT:
                # As vLLM does: both queues, so that an abort takes effect during a step and in order.
                self._core.aborts_queue.put_nowait(payload)
        self._core.input_queue.put_nowait((request_type, payload))

    def _lost_api_server(self, index: int, socket: zmq.Socket[bytes]) -> None:
        """Whoever comes back on this address is another process: abort the old one's requests."""
        logger.warning("API server %d is gone: aborting its requests", index)
        core = self._core
        core.on_engine_thread(lambda: core.forget_api_server(index))
        socket.send(JOIN)

    def _obey(self, control: zmq.Socket[bytes], command: FromManager) -> None:
        core = self._core
        send = core.tell_manager
        if isinstance(command, Replay):
            for call in command.calls:
                _, _, method, args = self._generic_decoder.decode(list(call))
                core.on_engine_thread(partial(core.replay, method, args))
            if command.then_serve:
                core.on_engine_thread(lambda: send(EngineServes(core.uid)))
        elif isinstance(command, SetPriority):
            core.on_engine_thread(lambda: send(self._set_priority(command)))
        elif isinstance(command, TellRequests):
            core.on_engine_thread(lambda: send(self._tell_requests(command)))
        elif isinstance(command, Move):
            core.on_engine_thread(lambda: send(self._move(command)))
        elif isinstance(command, MoveAway):
            core.on_engine_thread(lambda: core.llumlet.move_away(command))
        elif isinstance(command, PeerGone):
            core.on_engine_thread(lambda: core.peer_gone(command.uid, command.reason))
        elif isinstance(command, StopEngine):
            core.on_engine_thread(core.stop)
        else:
            raise AssertionError(f"the manager sent an instance {type(command).__name__}")

    def _move(self, command: Move) -> Done:
        try:
            migration = self._core.llumlet.move(
                command.request_id, command.target, command.address, command.reason
            )
        except RefusedError as error:
            return Done(command.command_id, str(error))
        self._core.llumlet.move_in_turn(command)
        return Done(command.command_id, result=migration)

    def _tell_requests(self, command: TellRequests) -> Done:
        self._core.tell_requests()
        return Done(command.command_id)

    def _set_priority(self, command: SetPriority) -> Done:
        if self._core.set_priority(command.request_id, command.priority):
            return Done(command.command_id)
        return Done(command.command_id, f"request {command.request_id} is not running any more")
