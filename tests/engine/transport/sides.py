"""One instance's side of a transport for tests, in this process or, through `peers`, in another."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from llumnix.engine.transport import (
    Endpoint,
    KVBlocks,
    Outcome,
    OutcomeKind,
    Transfer,
    TransportSettings,
)
from llumnix.engine.transport.blocks import BlockCopier
from llumnix.engine.transport.endpoint import BlockEndpoint
from llumnix.engine.transport.plane import Geometry, Mailbox, Plane, PlaneSource
from tests.engine.transport.caches import MAKERS, block_bytes, fill

NUM_BLOCKS = 48
WAIT_S = 60.0  # a limit for hangs only; nothing is expected to take this long
# A loaded machine must not look like a dead peer.
QUICK = TransportSettings(chunk_bytes=4096, num_slots=3, peer_timeout_s=20.0)


class Gate:
    """Lets a side's worker put or take so many more chunks; None is any number."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left: int | None = None
        self.num_passed = 0

    def allow(self, num_chunks: int | None) -> None:
        with self._changed:
            self._left = num_chunks
            self._changed.notify_all()

    def wait_passed(self, num_chunks: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.num_passed >= num_chunks, WAIT_S)

    def pass_one(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._left is None or self._left > 0)
            if self._left is not None:
                self._left -= 1
            self.num_passed += 1
            self._changed.notify_all()


class _GatedPlane(Plane):
    """The real plane behind a gate; chunks wait in staging, not while blocks are held."""

    def __init__(self, inner: Plane, gate: Gate) -> None:
        super().__init__(inner.geometry, inner.mailbox)
        self._inner, self._gate = inner, gate
        self.ahead = inner.ahead

    def open_sender(self) -> None:
        self._inner.open_sender()

    def open_receiver(self) -> None:
        self._inner.open_receiver()

    def slot(self, index: int, num_bytes: int) -> torch.Tensor:
        return self._inner.slot(index, num_bytes)

    def push(self, index: int, num_bytes: int) -> None:
        self._inner.push(index, num_bytes)
        self._gate.pass_one()

    def begin_pull(self, index: int, num_bytes: int) -> None:
        self._inner.begin_pull(index, num_bytes)

    def finish_pull(self, index: int, num_bytes: int) -> None:
        self._gate.pass_one()
        self._inner.finish_pull(index, num_bytes)

    def abort(self) -> None:
        self._gate.allow(None)
        self._inner.abort()

    def close(self, clean: bool) -> None:
        self._inner.close(clean)


class GatedPlanes(PlaneSource):
    def __init__(self, inner: PlaneSource, gate: Gate) -> None:
        self._inner, self._gate = inner, gate
        self.family = inner.family

    def plane(self, geometry: Geometry, mailbox: Mailbox) -> Plane:
        return _GatedPlane(self._inner.plane(geometry, mailbox), self._gate)

    def close(self) -> None:
        self._inner.close()


PlanesMaker = Callable[[str], PlaneSource]


def real_planes(transport: str, device: str = "cpu") -> PlaneSource:
    match transport:
        case "shm":
            from llumnix.engine.transport.shm import ShmPlanes

            return ShmPlanes()
        case "gloo":
            from llumnix.engine.transport.gloo import GlooPlanes

            return GlooPlanes("127.0.0.1")
        case "nccl":
            from llumnix.engine.transport.nccl import NcclPlanes

            return NcclPlanes.on_gpu(torch.device(device))
    from llumnix.engine.transport.cuda_ipc import CudaIpcPlanes

    return CudaIpcPlanes.on_gpu(torch.device(device))


class _CountedBlocks(KVBlocks):
    """Counts the copies out of it and into it."""

    num_copies = 0

    def copier(self) -> BlockCopier:
        return _CountingCopier(super().copier(), self)


class _CountingCopier:
    def __init__(self, inner: BlockCopier, blocks: _CountedBlocks) -> None:
        self._inner, self._blocks = inner, blocks

    def wait_for(self, fence: Any) -> None:
        self._inner.wait_for(fence)

    def gather(self, block_ids: Sequence[int], start: int, end: int, out: torch.Tensor) -> None:
        self._blocks.num_copies += 1
        self._inner.gather(block_ids, start, end, out)

    def scatter(self, block_ids: Sequence[int], start: int, end: int, staged: torch.Tensor) -> None:
        self._blocks.num_copies += 1
        self._inner.scatter(block_ids, start, end, staged)


class Side:
    """Blocks, an endpoint over them, and the ends of its transfers. Arguments and results are plain data."""

    def __init__(
        self,
        transport: str,
        seed: int,
        layout: str = "separate",
        settings: TransportSettings = QUICK,
        device: str = "cpu",
        num_blocks: int = NUM_BLOCKS,
        planes: PlanesMaker | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.tensors = MAKERS[layout](num_blocks, torch.bfloat16, device)
        fill(self.tensors, seed)
        self.gate = Gate()
        inner = planes(transport) if planes is not None else real_planes(transport, device)
        self._blocks = _CountedBlocks(self.tensors, num_blocks)
        self.endpoint: Endpoint = BlockEndpoint(
            transport, self._blocks, settings, GatedPlanes(inner, self.gate)
        )
        self._running: dict[str, Transfer] = {}
        self._ends: dict[str, queue.SimpleQueue[Outcome]] = {}
        self._poison: dict[str, int] = {}

    def address(self) -> bytes:
        return self.endpoint.address

    def pid(self) -> int:
        return os.getpid()

    def blocks(self) -> list[bytes]:
        """Every block's content."""
        return [block_bytes(self.tensors, self.num_blocks, b) for b in range(self.num_blocks)]

    def send(self, peer: bytes, name: str, block_ids: list[int], poison: int | None = None) -> None:
        self._start(name, poison)
        self._running[name] = self.endpoint.connect(peer).send(name, block_ids, self._ended)

    def receive(self, name: str, block_ids: list[int], poison: int | None = None) -> None:
        self._start(name, poison)
        self._running[name] = self.endpoint.receive(name, block_ids, self._ended)

    def cancel(self, name: str) -> None:
        self.endpoint.cancel(self._running[name])

    def has_ended(self, name: str) -> bool:
        return self._running[name].outcome is not None

    def wait(self, name: str) -> tuple[str, str]:
        """How the transfer ended, and why; its second end would stay in the queue for `num_ends`."""
        outcome = self._ends[name].get(timeout=WAIT_S)
        return outcome.kind.value, outcome.reason

    def num_further_ends(self) -> int:
        return sum(ends.qsize() for ends in self._ends.values())

    def allow(self, num_chunks: int | None) -> None:
        self.gate.allow(num_chunks)

    def wait_passed(self, num_chunks: int) -> None:
        self.gate.wait_passed(self._passed_before + num_chunks)

    def mark_passed(self) -> None:
        self._passed_before = self.gate.num_passed

    def settle(self) -> None:
        """All slots come back and the books balance."""
        deadline = time.monotonic() + WAIT_S
        while self.endpoint.usage().num_busy_slots and time.monotonic() < deadline:
            time.sleep(0.005)
        self.endpoint.check_integrity()
        usage = self.endpoint.usage()
        assert (usage.num_busy_slots, usage.num_transfers) == (0, 0), usage

    def num_copies(self) -> int:
        """Chunks copied out of blocks or into blocks."""
        return self._blocks.num_copies

    def staging_bytes(self) -> int:
        return self.endpoint.usage().staging_bytes

    def num_connections(self) -> int:
        return self.endpoint.usage().num_connections

    def close(self) -> None:
        self.gate.allow(None)
        self.endpoint.close()

    _passed_before = 0

    def _start(self, name: str, poison: int | None) -> None:
        self._ends[name] = queue.SimpleQueue()
        if poison is not None:
            self._poison[name] = poison

    def _ended(self, transfer: Transfer, outcome: Outcome) -> None:
        """The blocks are this side's own again, at once: whatever still touches them shows."""
        poison = self._poison.get(transfer.transfer_id)
        if poison is not None and outcome.kind is not OutcomeKind.DONE:
            for block_id in transfer.block_ids:
                for tensor in self.tensors:
                    tensor[block_id].view(torch.uint8).fill_(poison)
        self._ends[transfer.transfer_id].put(outcome)
