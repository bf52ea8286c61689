"""What distinguishes one transport from another: how a staged chunk gets from one side to the other."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from llumnix.engine.transport.base import TransportError


@dataclass(frozen=True, slots=True)
class Geometry:
    """A connection's staging: `num_slots` slots of `chunk_bytes`, and how long its calls may block."""

    chunk_bytes: int
    num_slots: int
    open_timeout_s: float
    io_timeout_s: float

    @property
    def num_bytes(self) -> int:
        """All slots together."""
        return self.chunk_bytes * self.num_slots


class Mailbox:
    """Notes between the two data planes of a connection, while they open; carried by the control socket."""

    def __init__(self, send: Callable[[str, bytes, tuple[int, ...]], object]) -> None:
        self._send = send
        self._arrived: dict[str, tuple[bytes, list[int]]] = {}
        self._changed = threading.Condition()
        self._failure: str | None = None

    def publish(self, key: str, value: bytes, fds: tuple[int, ...] = ()) -> None:
        """To the other side, from any thread; the descriptors are duplicated, the caller keeps its own."""
        self._send(key, value, tuple(os.dup(fd) for fd in fds))

    def take(self, key: str, timeout_s: float) -> tuple[bytes, list[int]]:
        """Waits for the other side's note; the descriptors become the caller's. Raises TransportError."""
        with self._changed:
            self._await(key, timeout_s)
            return self._arrived.pop(key)

    def peek(self, key: str, timeout_s: float) -> bytes:
        """The same, and the note stays."""
        with self._changed:
            self._await(key, timeout_s)
            return self._arrived[key][0]

    def put(self, key: str, value: bytes, fds: list[int]) -> None:
        """For the control socket: a note has come."""
        with self._changed:
            if self._failure is None:
                self._arrived[key] = (value, fds)
                self._changed.notify_all()
                return
        _close_all(fds)

    def fail(self, reason: str) -> None:
        """Whoever waits, or will, gets this reason; notes that nobody took are closed."""
        with self._changed:
            self._failure = self._failure or reason
            for _, fds in self._arrived.values():
                _close_all(fds)
            self._arrived.clear()
            self._changed.notify_all()

    def _await(self, key: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while key not in self._arrived:
            if self._failure is not None:
                raise TransportError(self._failure)
            left = deadline - time.monotonic()
            if left <= 0:
                raise TransportError(f"the peer did not send {key!r} within {timeout_s} s.")
            self._changed.wait(left)


class Plane(ABC):
    """One side of one connection. All calls but `abort` come from the connection's own thread.

    Calls may block for `io_timeout_s`, opening for `open_timeout_s`, and raise TransportError, after which
    only `close` follows. A plane never sees KV blocks: it moves staged bytes, so whatever the other side or
    the wire still does after a failure, it does to staging.
    """

    ahead: int = 1
    """How many pulls may be begun before the first of them is waited for."""

    def __init__(self, geometry: Geometry, mailbox: Mailbox) -> None:
        self.geometry = geometry
        self.mailbox = mailbox

    @abstractmethod
    def open_sender(self) -> None:
        """The sending side's half of making the connection."""

    @abstractmethod
    def open_receiver(self) -> None:
        """The receiving side's half."""

    @abstractmethod
    def slot(self, index: int, num_bytes: int) -> torch.Tensor:
        """The first bytes of a staging slot, uint8, flat."""

    @abstractmethod
    def push(self, index: int, num_bytes: int) -> None:
        """Sender: gives a filled slot to the wire. The slot is reused only once the receiver took it."""

    @abstractmethod
    def begin_pull(self, index: int, num_bytes: int) -> None:
        """Receiver: prepares for a chunk that was announced; in the order of the sender's pushes."""

    @abstractmethod
    def finish_pull(self, index: int, num_bytes: int) -> None:
        """Receiver: returns once the chunk is in the slot."""

    @abstractmethod
    def abort(self) -> None:
        """Any thread: has a blocked call end soon; the connection is lost already."""

    @abstractmethod
    def close(self, clean: bool) -> None:
        """Gives back everything; `clean` if both sides agreed that nothing is under way."""


class PlaneSource(ABC):
    """One per endpoint: what its connections share, and the maker of their planes."""

    family: str = "unix"
    """Of the control connection: unix inside a node, tcp between nodes."""

    @abstractmethod
    def plane(self, geometry: Geometry, mailbox: Mailbox) -> Plane:
        """A plane for a new connection; no blocking work yet."""

    @abstractmethod
    def close(self) -> None:
        """After all planes are closed."""


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
