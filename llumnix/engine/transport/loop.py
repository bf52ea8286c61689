"""One thread for all sockets, timers and completions of an endpoint."""

from __future__ import annotations

import collections
import heapq
import itertools
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from llumnix.engine.transport.base import TransportError

logger = logging.getLogger(__name__)


class Loop:
    """Runs callbacks one after the other; only `call_soon`, `call_and_wait` and `stop` are for other threads.

    A callback must not raise: what does is a bug, logged, and the loop goes on for the other peers.
    """

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._soon: collections.deque[tuple[Callable[..., None], tuple[Any, ...]]] = collections.deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()  # guards _ended against a late wake-up of a closed descriptor
        self._ended = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call_soon(self, function: Callable[..., None], *args: Any) -> bool:
        """Has the loop's thread call it; any thread, never waits. False once the loop has ended."""
        with self._lock:
            if self._ended:
                return False
            self._soon.append((function, args))
            os.eventfd_write(self._wake, 1)
            return True

    def call_and_wait(self, function: Callable[[], Any], timeout_s: float) -> Any:
        """The function's result, or its TransportError."""
        if self.is_own_thread():
            return function()
        answer: list[Any] = []
        error: list[BaseException] = []
        done = threading.Event()

        def call() -> None:
            try:
                answer.append(function())
            except TransportError as raised:
                error.append(raised)
            done.set()

        if not self.call_soon(call):
            raise TransportError("the transport's thread has ended.")
        if not done.wait(timeout_s) or not (answer or error):
            raise TransportError(f"the transport's thread did not answer within {timeout_s} s.")
        if error:
            raise error[0]
        return answer[0]

    def call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        """Once, on this thread, after the delay."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), function))

    def watch(self, sock: socket.socket, events: int, ready: Callable[[int], None]) -> None:
        """Calls `ready(events)` while the socket is; a second call for a socket replaces the first."""
        if sock in self._selector.get_map():
            self._selector.modify(sock, events, ready)
        else:
            self._selector.register(sock, events, ready)

    def unwatch(self, sock: socket.socket) -> None:
        """Before the socket is closed."""
        if sock in self._selector.get_map():
            self._selector.unregister(sock)

    def is_own_thread(self) -> bool:
        """Whether the caller is a callback."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """Ends the thread after what is already to be called; waits for it unless called by it."""
        self.call_soon(self._set_stopping)
        if not self.is_own_thread():
            self._thread.join()

    def _set_stopping(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        while not self._stopping:
            for key, events in self._selector.select(self._timeout_s()):
                if key.fd == self._wake:
                    os.eventfd_read(self._wake)
                elif key.fd in self._selector.get_map():  # not closed by a callback just before
                    self._call(key.data, events)
            while self._timers and self._timers[0][0] <= time.monotonic():
                self._call(heapq.heappop(self._timers)[2])
            for _ in range(len(self._soon)):
                function, args = self._soon.popleft()
                self._call(function, *args)
        with self._lock:
            self._ended = True
            self._selector.close()
            os.close(self._wake)
        for function, args in self._soon:  # came after the last round
            self._call(function, *args)

    def _timeout_s(self) -> float | None:
        if self._soon:
            return 0.0
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except Exception:
            logger.exception("a callback of the KV transport failed")
