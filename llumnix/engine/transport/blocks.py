"""Uniform access to an engine's KV tensors by block id: exact bytes out of blocks and into blocks."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from llumnix.engine.transport.base import TransportError
from llumnix.engine.transport.layout import BlockLayout, Extent, lay_out

# A short copy keeps the GIL: letting go and taking it back costs more than the copy, and an engine thread
# that wants the GIL meanwhile waits some microseconds only.
_KEEP_GIL_BYTES = 16 << 10
_WIDTHS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


class BlockCopier(Protocol):
    """Copies between blocks and staging; belongs to one thread, and has finished when a call returns."""

    def wait_for(self, fence: Any) -> None:
        """Later copies come after what the fence marks."""

    def gather(self, block_ids: Sequence[int], start: int, end: int, out: torch.Tensor) -> None:
        """Bytes [start, end) of each block into `out` (uint8, flat), extent by extent."""

    def scatter(self, block_ids: Sequence[int], start: int, end: int, staged: torch.Tensor) -> None:
        """The same bytes from staging back into blocks, exact bits."""


class KVBlocks:
    """An engine's KV cache as `num_blocks` blocks of `bytes_per_block`, all layers of a block together.

    Immutable and free of locks: any thread may read it. The tensors live as long as this object.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], num_blocks: int) -> None:
        """`tensors`: per layer [rows, ...] in any strides, rows a multiple of the manager's num_blocks."""
        self._tensors = list(tensors)
        self.layout: BlockLayout = lay_out(self._tensors, num_blocks)
        self.num_blocks = num_blocks
        self.device: torch.device = self._tensors[0].device

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block over all layers."""
        return self.layout.bytes_per_block

    @property
    def fingerprint(self) -> bytes:
        """Two sides can exchange blocks exactly if these are equal."""
        return self.layout.fingerprint

    def copier(self) -> BlockCopier:
        """A new copier for the calling thread; on GPU it has its own stream."""
        if self.device.type == "cpu":
            return HostCopier(self)
        return DeviceCopier(self)

    def fence(self) -> Any:
        """Marks what the caller's current CUDA stream was given so far; nothing on CPU. Never waits."""
        if self.device.type != "cuda":
            return None
        with torch.cuda.device(self.device):
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
        return event

    def check_ids(self, block_ids: Sequence[int]) -> None:
        """Raises TransportError unless all ids are blocks of this cache, each named once."""
        if len(set(block_ids)) != len(block_ids):
            raise TransportError("a block is named twice in one transfer.")
        if block_ids and not (min(block_ids) >= 0 and max(block_ids) < self.num_blocks):
            raise TransportError(f"a block id is outside of 0..{self.num_blocks - 1}.")

    def strided(self, extent: Extent, dtype: torch.dtype) -> torch.Tensor:
        """All blocks' pieces at an extent as a view [num_blocks, elements per piece]."""
        owner = next(
            t.untyped_storage()
            for t in self._tensors
            if 0 <= extent.address - t.untyped_storage().data_ptr() < t.untyped_storage().nbytes()
        )
        width = dtype.itemsize
        view = torch.empty(0, dtype=dtype, device=self.device)
        return view.set_(
            owner,
            (extent.address - owner.data_ptr()) // width,
            (self.num_blocks, extent.num_bytes // width),
            (extent.block_stride // width, 1),
        )


class HostCopier:
    """Copies on the calling thread alone, whatever number of threads torch has for the model."""

    def __init__(self, blocks: KVBlocks) -> None:
        self._layout = blocks.layout
        self._keeping_gil = ctypes.PyDLL(None).memcpy
        self._keeping_gil.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        self._keeping_gil.restype = None

    def wait_for(self, fence: Any) -> None:
        """Blocks on CPU are written by the caller's own thread: nothing to wait for."""

    def gather(self, block_ids: Sequence[int], start: int, end: int, out: torch.Tensor) -> None:
        """See BlockCopier."""
        staging = out.data_ptr()
        for block, size, offset in self._copies(block_ids, start, end):
            self._copy(staging + offset, block, size)

    def scatter(self, block_ids: Sequence[int], start: int, end: int, staged: torch.Tensor) -> None:
        """See BlockCopier."""
        staging = staged.data_ptr()
        for block, size, offset in self._copies(block_ids, start, end):
            self._copy(block, staging + offset, size)

    def _copies(self, block_ids: Sequence[int], start: int, end: int) -> list[tuple[int, int, int]]:
        """(address, bytes, offset in staging); neighbouring blocks that touch in memory make one copy."""
        copies: list[tuple[int, int, int]] = []
        offset = 0
        runs = _runs(block_ids)
        for extent, low, high in self._layout.overlap(start, end):
            size = high - low
            joined = size == extent.block_stride
            for first, count in runs:
                address = extent.address + low + first * extent.block_stride
                step = size * count if joined else size
                for n in range(1 if joined else count):
                    copies.append((address + n * extent.block_stride, step, offset))
                    offset += step
        return copies

    def _copy(self, to: int, source: int, num_bytes: int) -> None:
        if num_bytes < _KEEP_GIL_BYTES:
            self._keeping_gil(to, source, num_bytes)
        else:
            ctypes.memmove(to, source, num_bytes)


class DeviceCopier:
    """One indexed copy per extent, on its own stream where the blocks are on a GPU."""

    def __init__(self, blocks: KVBlocks) -> None:
        self._layout = blocks.layout
        self._device = blocks.device
        self._width = math.gcd(
            *(n for e in blocks.layout.extents for n in (e.address, e.block_stride, e.num_bytes)), 8
        )
        self._dtype = _WIDTHS[self._width]
        self._views = {e: blocks.strided(e, self._dtype) for e in blocks.layout.extents}
        self._stream = torch.cuda.Stream(blocks.device) if blocks.device.type == "cuda" else None

    def wait_for(self, fence: Any) -> None:
        """See BlockCopier."""
        if self._stream is not None and fence is not None:
            self._stream.wait_event(fence)

    def gather(self, block_ids: Sequence[int], start: int, end: int, out: torch.Tensor) -> None:
        """See BlockCopier."""
        with self._on_stream():
            ids = torch.tensor(block_ids, dtype=torch.int64, device=self._device)
            for view, part in self._parts(len(block_ids), start, end, out):
                torch.index_select(view, 0, ids, out=part)
        self._finish()

    def scatter(self, block_ids: Sequence[int], start: int, end: int, staged: torch.Tensor) -> None:
        """See BlockCopier."""
        with self._on_stream():
            ids = torch.tensor(block_ids, dtype=torch.int64, device=self._device)
            for view, part in self._parts(len(block_ids), start, end, staged):
                view.index_copy_(0, ids, part)
        self._finish()

    def _parts(
        self, count: int, start: int, end: int, staging: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(blocks' view, staging's view), both [., elements], extent by extent."""
        if start % self._width or end % self._width:
            raise TransportError(f"a chunk of {start}..{end} splits an element of {self._width} bytes.")
        parts = []
        offset = 0
        for extent, low, high in self._layout.overlap(start, end):
            view = self._views[extent][:, low // self._width : high // self._width]
            size = (high - low) * count
            part = staging[offset : offset + size].view(self._dtype).view(count, -1)
            parts.append((view, part))
            offset += size
        return parts

    def _on_stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()

    def _finish(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def _runs(block_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending neighbours as (first id, count)."""
    runs = []
    for _, group in itertools.groupby(enumerate(block_ids), lambda pair: pair[1] - pair[0]):
        ids = [block_id for _, block_id in group]
        runs.append((ids[0], len(ids)))
    return runs
