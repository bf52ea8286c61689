"""Gloo between nodes: one two-rank group per connection, beside vLLM's own groups.

The two ranks find each other through the control connection, which is authenticated, instead of through a
store server, which would not be; Gloo itself listens only on the configured address.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch.distributed import ProcessGroupGloo, Store

from llumnix.engine.transport.base import TransportError
from llumnix.engine.transport.plane import Geometry, Mailbox, Plane, PlaneSource

_SENDER, _RECEIVER = 0, 1


class _ControlStore(Store):
    """The store that a group of two meets in: own keys go to the peer, the peer's come from it."""

    def __init__(self, mailbox: Mailbox, timeout_s: float) -> None:
        super().__init__()
        self._mailbox = mailbox
        self._timeout_s = timeout_s
        self._own: dict[str, bytes] = {}

    def set(self, key: str, value: str | bytes) -> None:
        self._own[key] = value.encode() if isinstance(value, str) else bytes(value)
        self._mailbox.publish(key, self._own[key])

    def get(self, key: str) -> bytes:
        return self._own[key] if key in self._own else self._mailbox.peek(key, self._timeout_s)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        for key in keys:
            self.get(key)


class GlooPlane(Plane):
    """Sends leave by Gloo's own thread; a dead receiver shows in missing answers on the control socket."""

    def __init__(self, geometry: Geometry, mailbox: Mailbox, device: Any) -> None:
        super().__init__(geometry, mailbox)
        self.ahead = geometry.num_slots
        self._device = device
        self._group: ProcessGroupGloo | None = None
        self._staging = torch.empty(0, dtype=torch.uint8)
        self._work: dict[int, Any] = {}

    def open_sender(self) -> None:
        """See Plane."""
        self._open(_SENDER)

    def open_receiver(self) -> None:
        """See Plane."""
        self._open(_RECEIVER)

    def slot(self, index: int, num_bytes: int) -> torch.Tensor:
        """See Plane."""
        start = index * self.geometry.chunk_bytes
        return self._staging[start : start + num_bytes]

    def push(self, index: int, num_bytes: int) -> None:
        """Returns before the bytes have left: the slot is not touched until the receiver took the chunk."""
        # An earlier send from this slot has ended, as the receiver took what it sent.
        self._work[index] = self._of(lambda g: g.send([self.slot(index, num_bytes)], _RECEIVER, index))

    def begin_pull(self, index: int, num_bytes: int) -> None:
        """See Plane."""
        self._work[index] = self._of(lambda g: g.recv([self.slot(index, num_bytes)], _SENDER, index))

    def finish_pull(self, index: int, num_bytes: int) -> None:
        """See Plane."""
        work = self._work.pop(index)
        self._of(lambda _: work.wait(timedelta(seconds=self.geometry.io_timeout_s)))

    def abort(self) -> None:
        """Gloo's waits end by io_timeout_s, and at once where the peer's process has ended."""

    def close(self, clean: bool) -> None:
        """The group goes before the memory that its thread may still read or write."""
        self._work.clear()
        self._group = None
        self._device = None
        self._staging = torch.empty(0, dtype=torch.uint8)

    def _open(self, rank: int) -> None:
        self._staging = torch.empty(self.geometry.num_bytes, dtype=torch.uint8)
        options = ProcessGroupGloo._Options()
        options._devices = [self._device]
        options._timeout = timedelta(seconds=self.geometry.open_timeout_s)
        options._threads = 1
        store = _ControlStore(self.mailbox, self.geometry.open_timeout_s)
        try:
            self._group = ProcessGroupGloo(store, rank, 2, options)
        except RuntimeError as error:
            raise TransportError(f"Gloo could not connect: {_first_line(error)}") from error

    def _of(self, call: Any) -> Any:
        try:
            return call(self._group)
        except RuntimeError as error:
            raise TransportError(f"Gloo lost the peer: {_first_line(error)}") from error


class GlooPlanes(PlaneSource):
    """One Gloo device, hence one listening socket and one thread, for all connections of an endpoint."""

    family = "tcp"

    def __init__(self, host: str) -> None:
        self._device = ProcessGroupGloo.create_device(hostname=host)

    def plane(self, geometry: Geometry, mailbox: Mailbox) -> GlooPlane:
        """See PlaneSource."""
        return GlooPlane(geometry, mailbox, self._device)

    def close(self) -> None:
        """Ends the device's thread once the last group is gone."""
        self._device = None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
