"""NCCL between GPUs: a communicator of two per connection, made at the first transfer and kept.

One chunk is in flight at a time, on a stream of its own. Nothing waits without looking at the communicator's
asynchronous error, a time limit and the connection's abort; a lost peer ends in ncclCommAbort.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from llumnix.engine.transport.base import TransportError
from llumnix.engine.transport.gpu import CudaGpu, Gpu, Stream
from llumnix.engine.transport.nccl_library import NcclLibrary
from llumnix.engine.transport.plane import Geometry, Mailbox, Plane, PlaneSource

_SENDER, _RECEIVER = 0, 1
_MAX_CTAS = 4
_POLL_S = 20e-6
_OPENING_POLL_S = 1e-3
_NOTE = "nccl"


class NcclPlane(Plane):
    """The communicator belongs to the connection's thread, which alone uses and aborts it."""

    def __init__(self, geometry: Geometry, mailbox: Mailbox, library: NcclLibrary, gpu: Gpu) -> None:
        super().__init__(geometry, mailbox)
        self._library = library
        self._gpu = gpu
        self._comm: int | None = None
        self._stream: Stream | None = None
        self._staging: torch.Tensor | None = None
        self._aborted = threading.Event()

    def open_sender(self) -> None:
        """Makes the unique id and passes it on."""
        unique_id = self._library.unique_id()
        self.mailbox.publish(_NOTE, unique_id)
        self._open(unique_id, _SENDER)

    def open_receiver(self) -> None:
        """Waits for the unique id."""
        unique_id, _ = self.mailbox.take(_NOTE, self.geometry.open_timeout_s)
        self._open(unique_id, _RECEIVER)

    def slot(self, index: int, num_bytes: int) -> torch.Tensor:
        """See Plane."""
        if self._staging is None:
            raise TransportError("NCCL is not connected.")
        start = index * self.geometry.chunk_bytes
        return self._staging[start : start + num_bytes]

    def push(self, index: int, num_bytes: int) -> None:
        """Returns once the chunk has left."""
        comm, stream = self._connected()
        address = self.slot(index, num_bytes).data_ptr()
        self._library.send(comm, address, num_bytes, _RECEIVER, stream.handle)
        self._finish(comm, stream)

    def begin_pull(self, index: int, num_bytes: int) -> None:
        """See Plane."""
        comm, stream = self._connected()
        address = self.slot(index, num_bytes).data_ptr()
        self._library.receive(comm, address, num_bytes, _SENDER, stream.handle)

    def finish_pull(self, index: int, num_bytes: int) -> None:
        """See Plane."""
        self._finish(*self._connected())

    def abort(self) -> None:
        """The connection's thread sees it at its next look."""
        self._aborted.set()

    def close(self, clean: bool) -> None:
        """Aborts in every case: nothing is under way after a clean end, and it asks nothing of the peer."""
        comm, self._comm = self._comm, None
        if comm is not None:
            self._library.abort(comm)
        self._stream = None
        self._staging = None

    def _open(self, unique_id: bytes, rank: int) -> None:
        self._gpu.use()
        self._staging = self._gpu.allocate(self.geometry.num_bytes)
        self._stream = self._gpu.stream()
        self._comm = comm = self._library.init_rank(unique_id, rank, _MAX_CTAS)
        self._wait(lambda: self._library.is_settled(comm), self.geometry.open_timeout_s, _OPENING_POLL_S)

    def _connected(self) -> tuple[int, Stream]:
        if self._comm is None or self._stream is None:
            raise TransportError("NCCL is not connected.")
        return self._comm, self._stream

    def _finish(self, comm: int, stream: Stream) -> None:
        """What was begun is on the stream once the communicator has settled; then the stream must run it."""
        timeout_s = self.geometry.io_timeout_s
        self._wait(lambda: self._library.is_settled(comm), timeout_s, _POLL_S)
        is_done = stream.mark()
        # Settled or not, the error state is looked at each time: it shows a peer that died in between.
        self._wait(lambda: self._library.is_settled(comm) and is_done(), timeout_s, _POLL_S)

    def _wait(self, is_over: Callable[[], bool], timeout_s: float, poll_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_over():
            if self._aborted.is_set():
                raise TransportError("the connection was given up")
            if time.monotonic() > deadline:
                raise TransportError(f"NCCL made no progress for {timeout_s} s")
            time.sleep(poll_s)


class NcclPlanes(PlaneSource):
    """One library and one GPU for all connections of an endpoint."""

    family = "tcp"

    def __init__(self, library: NcclLibrary, gpu: Gpu) -> None:
        self._library = library
        self._gpu = gpu

    @classmethod
    def on_gpu(cls, device: torch.device) -> NcclPlanes:
        """With the NCCL that this process uses; raises TransportError without one."""
        return cls(NcclLibrary.load(), CudaGpu(device))

    def plane(self, geometry: Geometry, mailbox: Mailbox) -> NcclPlane:
        """See PlaneSource."""
        return NcclPlane(geometry, mailbox, self._library, self._gpu)

    def close(self) -> None:
        """Nothing is shared between connections."""
