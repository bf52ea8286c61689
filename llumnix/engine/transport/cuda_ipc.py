"""CUDA IPC inside a node: staging is device memory of the sender that the receiver maps.

Both sides synchronise their copies with the host before they tell each other, so no event is shared.
"""

from __future__ import annotations

import os
import threading

import torch

from llumnix.engine.transport.base import TransportError
from llumnix.engine.transport.gpu import CudaGpu, Gpu
from llumnix.engine.transport.node import is_running, process_name
from llumnix.engine.transport.plane import Geometry, Mailbox, Plane, PlaneSource

_HANDLE, _READER = "handle", "reader"


class CudaIpcPlane(Plane):
    """Like shared memory, but that memory which a peer may still map must not be freed."""

    def __init__(self, geometry: Geometry, mailbox: Mailbox, gpu: Gpu, kept: KeptMemory) -> None:
        super().__init__(geometry, mailbox)
        self._gpu = gpu
        self._kept = kept
        self._staging: torch.Tensor | None = None
        self._foreign: torch.Tensor | None = None
        """Receiver: the mapped memory, where another GPU has it; chunks are then fetched into staging."""
        self._own: int | None = None
        self._mapped: int | None = None
        self._reader = b""

    def open_sender(self) -> None:
        """Hands the memory's handle over, once it is known which process will map it."""
        self._gpu.use()
        self._kept.free_unread(self._gpu)
        self._reader, _ = self.mailbox.take(_READER, self.geometry.open_timeout_s)
        self._own = self._gpu.shareable(self.geometry.num_bytes)
        self._staging = self._gpu.tensor(self._own, self.geometry.num_bytes)
        self.mailbox.publish(_HANDLE, self._gpu.export(self._own))

    def open_receiver(self) -> None:
        """Maps the sender's memory."""
        self._gpu.use()
        self.mailbox.publish(_READER, process_name(os.getpid()))
        handle, _ = self.mailbox.take(_HANDLE, self.geometry.open_timeout_s)
        self._mapped = self._gpu.map(handle)
        mapped = self._gpu.tensor(self._mapped, self.geometry.num_bytes)
        if self._gpu.is_own(mapped):
            self._staging = mapped
        else:
            self._foreign = mapped
            self._staging = self._gpu.allocate(self.geometry.num_bytes)

    def slot(self, index: int, num_bytes: int) -> torch.Tensor:
        """See Plane."""
        if self._staging is None:
            raise TransportError("the device memory is not mapped.")
        start = index * self.geometry.chunk_bytes
        return self._staging[start : start + num_bytes]

    def push(self, index: int, num_bytes: int) -> None:
        """The receiver sees it already: the copier has waited for its copy."""

    def begin_pull(self, index: int, num_bytes: int) -> None:
        """It is there already."""

    def finish_pull(self, index: int, num_bytes: int) -> None:
        """It is there already, unless another GPU has it."""
        if self._foreign is not None:
            start = index * self.geometry.chunk_bytes
            self._gpu.copy(self.slot(index, num_bytes), self._foreign[start : start + num_bytes])

    def abort(self) -> None:
        """No call of it blocks but for the mailbox, which ends by itself."""

    def close(self, clean: bool) -> None:
        """After an unclean end the sender's memory is kept until the process that maps it is gone."""
        self._staging = self._foreign = None
        mapped, self._mapped = self._mapped, None
        own, self._own = self._own, None
        if mapped is not None:
            self._gpu.unmap(mapped)
        if own is not None:
            if clean:
                self._gpu.free(own)
            else:
                self._kept.keep(own, self._reader)
                self._kept.free_unread(self._gpu)


class KeptMemory:
    """Shared device memory of ended connections whose reader may still map it. Safe for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[tuple[int, bytes]] = []

    def keep(self, address: int, reader: bytes) -> None:
        """`reader`: the name of the process that was given its handle."""
        with self._lock:
            self._kept.append((address, reader))

    def free_unread(self, gpu: Gpu) -> None:
        """Frees what no living process can map any more."""
        with self._lock:
            gone = [kept for kept in self._kept if not is_running(kept[1])]
            self._kept = [kept for kept in self._kept if kept not in gone]
        for address, _ in gone:
            gpu.free(address)


class CudaIpcPlanes(PlaneSource):
    """One GPU, and what is kept of ended connections; the process's end frees the rest."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._kept = KeptMemory()

    @classmethod
    def on_gpu(cls, device: torch.device) -> CudaIpcPlanes:
        """With the CUDA runtime that torch uses."""
        return cls(CudaGpu(device))

    def plane(self, geometry: Geometry, mailbox: Mailbox) -> CudaIpcPlane:
        """See PlaneSource."""
        return CudaIpcPlane(geometry, mailbox, self._gpu, self._kept)

    def close(self) -> None:
        """Frees what can be freed safely."""
        self._kept.free_unread(self._gpu)
