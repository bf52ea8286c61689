"""The llumlet's sending thread: outputs and reports to API servers, everything to the manager, heartbeats."""

from __future__ import annotations

import queue
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import zmq
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.serial_utils import MsgpackEncoder

from llumnix.core.health import hang_reason
from llumnix.core.load import InstanceReport
from llumnix.engine.loop_clock import LoopWatch
from llumnix.engine.peers import Letter, to_frames
from llumnix.sockets import open_socket
from llumnix.wire import (
    TAG_LAST_WORDS,
    TAG_NOTICE,
    TAG_OUTPUTS,
    TAG_REPORT,
    ApiServerAddress,
    Heartbeat,
    NoticeFrom,
    Report,
    ToManager,
    codec,
    origin,
)

if TYPE_CHECKING:
    from llumnix.engine.instance import InstanceCore

BEAT_INTERVAL_S = 0.25
MANAGER_REPORT_INTERVAL_S = 0.1  # it decides as often
IDLE_REPORT_INTERVAL_S = 0.5
NEWS_KEPT = 1_000
"""Messages that wait for a manager that is away: those of a minute or so."""


@dataclass(frozen=True, slots=True)
class DropApiServer:
    """The process at that address is gone: what is queued for it is for nobody."""

    index: int


@dataclass(frozen=True, slots=True)
class DropPeer:
    """That instance is dead: what is queued for it is for nobody."""

    uid: int


@dataclass(frozen=True, slots=True)
class LastWords:
    """The engine loop failed for this reason; sent to all, then the thread ends."""

    reason: str


class Outbox:
    """Empties the engine loop's output queue; runs on a thread of its own until the last words."""

    def __init__(self, core: InstanceCore) -> None:
        self._core = core
        self._encoder = MsgpackEncoder()
        self._codec = codec()
        self._servers: dict[int, ApiServerAddress] = {s.index: s for s in core.endpoints.api_servers}
        self._peers: dict[int, zmq.Socket[bytes]] = {}
        self._numbers: Counter[int] = Counter()
        """Of the next message to each API server."""
        self._seq = 0
        self._report: InstanceReport | None = None
        self._report_sent_at = 0.0
        self._manager_report_at = 0.0
        self._next_beat_at = 0.0
        self._next_tick_at = 0.0
        self._watch = LoopWatch(core.uid, core.clock)
        self._hangs = False

    def run(self) -> None:
        with ExitStack() as stack:
            context = stack.enter_context(zmq.Context())
            self._context = context
            news = self._core.endpoints.control.news
            self._manager = stack.enter_context(self._open(news, NEWS_KEPT))
            self._sockets = {index: self._open(s.output) for index, s in self._servers.items()}
            stack.callback(self._close_sockets)
            while True:
                self._on_time(time.monotonic())
                try:
                    item: Any = self._core.output_queue.get(timeout=BEAT_INTERVAL_S)
                except queue.Empty:
                    continue
                if item == EngineCoreProc.ENGINE_CORE_DEAD or isinstance(item, LastWords):
                    self._say_last_words(
                        item.reason if isinstance(item, LastWords) else "the engine loop ended"
                    )
                    return
                self._send(item)

    def _open(self, address: str, send_limit: int = 0) -> zmq.Socket[bytes]:
        curve = self._core.endpoints.curve
        return open_socket(self._context, zmq.PUSH, address, bind=False, curve=curve, send_limit=send_limit)

    def _close_sockets(self) -> None:
        for socket in (*self._sockets.values(), *self._peers.values()):
            socket.close()

    def _send(self, item: Any) -> None:
        if isinstance(item, tuple):
            self._send_to_server(*item)
        elif isinstance(item, Letter):
            self._send_letter(item)
        elif isinstance(item, InstanceReport):
            self._send_report(item)
        elif isinstance(item, DropPeer):
            socket = self._peers.pop(item.uid, None)
            if socket is not None:
                socket.close()
        elif isinstance(item, DropApiServer):
            self._sockets[item.index].close()
            self._sockets[item.index] = self._open(self._servers[item.index].output)
            del self._numbers[item.index]
        else:
            self._tell_manager(item)

    def _send_to_server(self, index: int, item: EngineCoreOutputs | NoticeFrom) -> None:
        if isinstance(item, NoticeFrom):
            self._send_numbered(index, TAG_NOTICE, self._codec.encoder.encode(item))
        else:
            self._send_outputs(index, item)

    def _send_letter(self, letter: Letter) -> None:
        socket = self._peers.get(letter.peer)
        if socket is None:
            socket = self._peers[letter.peer] = self._open(letter.address.letters)
        socket.send_multipart(to_frames(self._core.uid, self._core.address, letter.message))

    def _send_outputs(self, index: int, outputs: EngineCoreOutputs) -> None:
        outputs.engine_index = self._core.uid
        self._send_numbered(index, TAG_OUTPUTS, *self._encoder.encode(outputs), copy=False)

    def _send_numbered(self, index: int, tag: bytes, *payload: Any, copy: bool = True) -> None:
        """What a broken connection has lost of it shows by the numbers."""
        head = (tag, origin(self._core.uid, self._numbers[index]))
        self._numbers[index] += 1
        self._sockets[index].send_multipart([*head, *payload], copy=copy)

    def _send_report(self, report: InstanceReport) -> None:
        self._seq += 1
        self._report = replace(report, seq=self._seq)
        self._report_sent_at = time.monotonic()
        payload = self._codec.encoder.encode(self._report)
        for index in self._sockets:
            self._send_numbered(index, TAG_REPORT, payload)
        # The manager decides less often than API servers dispatch; what it misses comes again while idle.
        if self._report_sent_at >= self._manager_report_at:
            self._manager_report_at = self._report_sent_at + MANAGER_REPORT_INTERVAL_S
            self._tell_manager(Report(self._report))

    def _tell_manager(self, message: ToManager) -> None:
        with suppress(zmq.Again):  # it has been away for long: reports and heartbeats of then are of no use
            self._manager.send(self._codec.encoder.encode(message))

    def _say_last_words(self, reason: str) -> None:
        for socket in self._sockets.values():
            socket.setsockopt(zmq.LINGER, 1_000)
        for index in self._sockets:
            self._send_numbered(index, TAG_LAST_WORDS, reason.encode())

    def _on_time(self, now: float) -> None:
        """What is due by the clock: the engine's tick, a heartbeat, the last report again in silence."""
        if now >= self._next_tick_at:
            self._next_tick_at = now + IDLE_REPORT_INTERVAL_S
            self._core.on_engine_thread(self._core.tick)
        if now >= self._next_beat_at:
            self._next_beat_at = now + BEAT_INTERVAL_S
            self._beat(now)
        # A loop that hangs falls silent to the API servers too, which may have no manager to tell them.
        is_due = now - self._report_sent_at > IDLE_REPORT_INTERVAL_S
        if self._report is not None and is_due and not self._hangs:
            self._send_report(self._report)

    def _beat(self, now: float) -> None:
        beat = self._watch.beat(now)
        self._tell_manager(Heartbeat(beat))
        health = self._core.health
        reason = hang_reason(
            beat,
            0.0,
            heartbeat_timeout_s=health.heartbeat_timeout_s,
            step_timeout_s=health.step_timeout_s,
        )
        self._hangs = reason is not None
