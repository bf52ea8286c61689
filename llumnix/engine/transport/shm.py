"""Shared memory inside a node: staging is one anonymous segment that both processes map.

The segment never has a name (memfd, passed over the control socket), so nothing is left of it after any
death, and it is sealed against shrinking, so a peer cannot make the other's mapping fault.
"""

from __future__ import annotations

import fcntl
import mmap
import os

import torch

from llumnix.engine.transport.base import TransportError
from llumnix.engine.transport.plane import Geometry, Mailbox, Plane, PlaneSource

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_NOTE = "segment"


class ShmPlane(Plane):
    """A chunk is where the receiver wants it as soon as the sender staged it: push and pull move nothing."""

    def __init__(self, geometry: Geometry, mailbox: Mailbox) -> None:
        super().__init__(geometry, mailbox)
        self._staging: torch.Tensor | None = None

    def open_sender(self) -> None:
        """Makes the segment and hands it over."""
        fd = os.memfd_create("llumnix-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, self.geometry.num_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            self._staging = _mapped(fd, self.geometry.num_bytes)
            self.mailbox.publish(_NOTE, b"", (fd,))
        finally:
            os.close(fd)

    def open_receiver(self) -> None:
        """Maps the sender's segment."""
        _, fds = self.mailbox.take(_NOTE, self.geometry.open_timeout_s)
        try:
            if len(fds) != 1:
                raise TransportError(f"the peer sent {len(fds)} segments instead of one.")
            sealed = fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
            if not sealed or os.fstat(fds[0]).st_size < self.geometry.num_bytes:
                raise TransportError("the peer's shared memory is too small or may shrink.")
            self._staging = _mapped(fds[0], self.geometry.num_bytes)
        finally:
            for fd in fds:
                os.close(fd)

    def slot(self, index: int, num_bytes: int) -> torch.Tensor:
        """See Plane."""
        if self._staging is None:
            raise TransportError("the shared memory is not mapped.")
        start = index * self.geometry.chunk_bytes
        return self._staging[start : start + num_bytes]

    def push(self, index: int, num_bytes: int) -> None:
        """The receiver sees it already."""

    def begin_pull(self, index: int, num_bytes: int) -> None:
        """It is there already."""

    def finish_pull(self, index: int, num_bytes: int) -> None:
        """It is there already."""

    def abort(self) -> None:
        """No call of it blocks but for the mailbox, which ends by itself."""

    def close(self, clean: bool) -> None:
        """Unmaps; the kernel frees the segment once both sides did."""
        self._staging = None


class ShmPlanes(PlaneSource):
    """Needs nothing in common between connections."""

    def plane(self, geometry: Geometry, mailbox: Mailbox) -> ShmPlane:
        """See PlaneSource."""
        return ShmPlane(geometry, mailbox)

    def close(self) -> None:
        """Nothing is shared between connections."""


def _mapped(fd: int, num_bytes: int) -> torch.Tensor:
    """The tensor owns the mapping, and the mapping a duplicate of the descriptor."""
    return torch.frombuffer(mmap.mmap(fd, num_bytes), dtype=torch.uint8)
