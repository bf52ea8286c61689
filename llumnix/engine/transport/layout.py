"""Where the bytes of a KV block lie: contiguous extents, and a fingerprint that two sides compare."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llumnix.engine.transport.base import TransportError

_FINGERPRINT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Extent:
    """One contiguous piece of every block: of block b it lies at address + b * block_stride (bytes)."""

    address: int
    block_stride: int
    num_bytes: int
    layer: int


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """All extents of one block, in the order in which a transfer carries them."""

    extents: tuple[Extent, ...]
    bytes_per_block: int
    fingerprint: bytes

    def overlap(self, start: int, end: int) -> list[tuple[Extent, int, int]]:
        """The extents that hold bytes [start, end) of a block, each with the part [low, high) of it."""
        parts = []
        position = 0
        for extent in self.extents:
            low, high = max(start - position, 0), min(end - position, extent.num_bytes)
            if low < high:
                parts.append((extent, low, high))
            position += extent.num_bytes
        return parts


@dataclass(frozen=True, slots=True)
class _Piece:
    """A contiguous run inside one layer's block; `ordinal` counts a layer's runs by descending stride."""

    address: int
    block_stride: int
    num_bytes: int
    layer: int
    ordinal: int


def lay_out(tensors: Sequence[torch.Tensor], num_blocks: int) -> BlockLayout:
    """The layout of per-layer tensors [rows, ...], rows a multiple of num_blocks; raises TransportError."""
    layers = _distinct(tensors)
    if not layers or num_blocks < 1:
        raise TransportError(f"no KV blocks to move: {len(layers)} tensors, {num_blocks} blocks.")
    if len({(tensor.dtype, tensor.device) for tensor in layers}) > 1:
        raise TransportError("KV tensors of several dtypes or devices cannot be moved.")
    pieces = [piece for i, tensor in enumerate(layers) for piece in _pieces(i, tensor, num_blocks)]
    if len({tensor.untyped_storage().data_ptr() for tensor in layers}) == 1:
        # Layers that share a buffer may interleave inside a block: by address they merge into one extent.
        pieces.sort(key=lambda piece: piece.address)
    extents = _merged(pieces)
    return BlockLayout(extents, sum(e.num_bytes for e in extents), _fingerprint(layers, pieces, num_blocks))


def _distinct(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Layers that share one cache are moved once."""
    return list({(t.data_ptr(), tuple(t.shape), t.stride()): t for t in tensors}.values())


def _pieces(layer: int, tensor: torch.Tensor, num_blocks: int) -> list[_Piece]:
    rows_per_block, rest = divmod(tensor.shape[0], num_blocks)
    if rest or not rows_per_block:
        raise TransportError(
            f"KV tensor {layer} has {tensor.shape[0]} rows, which is no multiple of {num_blocks} blocks."
        )
    item = tensor.element_size()
    dims = _dims(tensor, rows_per_block)
    run = item
    while dims and dims[-1][1] * item == run:
        run *= dims.pop()[0]
    if any(stride * item < run for _, stride in dims):
        raise TransportError(f"KV tensor {layer} has overlapping strides {tensor.stride()}.")
    stride_bytes = rows_per_block * tensor.stride(0) * item
    offsets = (
        sum(index * stride * item for index, (_, stride) in zip(at, dims, strict=True))
        for at in itertools.product(*(range(size) for size, _ in dims))
    )
    base = tensor.data_ptr()
    return [_Piece(base + offset, stride_bytes, run, layer, n) for n, offset in enumerate(offsets)]


def _dims(tensor: torch.Tensor, rows_per_block: int) -> list[tuple[int, int]]:
    """(size, stride) of a block's dimensions, outermost in memory first."""
    dims = [(rows_per_block, tensor.stride(0)), *zip(tensor.shape[1:], tensor.stride()[1:], strict=True)]
    return sorted((d for d in dims if d[0] > 1), key=lambda d: -d[1])


def _merged(pieces: list[_Piece]) -> tuple[Extent, ...]:
    extents: list[Extent] = []
    for piece in pieces:
        last = extents[-1] if extents else None
        if (
            last is not None
            and last.block_stride == piece.block_stride
            and last.address + last.num_bytes == piece.address
        ):
            extents[-1] = Extent(
                last.address, last.block_stride, last.num_bytes + piece.num_bytes, last.layer
            )
        else:
            extents.append(Extent(piece.address, piece.block_stride, piece.num_bytes, piece.layer))
    return tuple(extents)


def _fingerprint(layers: list[torch.Tensor], pieces: list[_Piece], num_blocks: int) -> bytes:
    """Equal on two sides exactly if a block's bytes mean the same; block counts and addresses may differ."""
    order = [
        [list(t.shape[1:]), t.shape[0] // num_blocks, _memory_order(t, t.shape[0] // num_blocks)]
        for t in layers
    ]
    carried = [[piece.layer, piece.ordinal, piece.num_bytes] for piece in pieces]
    text = json.dumps([_FINGERPRINT_VERSION, str(layers[0].dtype), order, carried])
    return hashlib.sha256(text.encode()).digest()


def _memory_order(tensor: torch.Tensor, rows_per_block: int) -> list[int]:
    """The block's dimensions, outermost in memory first; those of size 1 have no place."""
    sizes = [rows_per_block, *tensor.shape[1:]]
    moved = [dim for dim, size in enumerate(sizes) if size > 1]
    return sorted(moved, key=lambda dim: -tensor.stride(dim))
