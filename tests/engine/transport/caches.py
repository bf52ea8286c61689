"""KV caches of every memory layout that vLLM has, small, on any device."""

from __future__ import annotations

from collections.abc import Callable

import torch

NUM_LAYERS, HEADS, TOKENS, CONTENT = 3, 2, 8, 16
# vLLM's KVCacheLayout: physical order of the logical axes [layer, block, head, token, content].
ORDERS = {
    "LBHNC": (0, 1, 2, 3, 4),
    "LBNHC": (0, 1, 3, 2, 4),
    "LHBNC": (0, 2, 1, 3, 4),
    "BLHNC": (1, 0, 2, 3, 4),
    "BLNHC": (1, 0, 3, 2, 4),
    "BHLNC": (1, 2, 0, 3, 4),
}


def one_buffer(order: str, num_blocks: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Per-layer views [blocks, heads, tokens, content] into one buffer."""
    sizes = (NUM_LAYERS, num_blocks, HEADS, TOKENS, CONTENT)
    physical = ORDERS[order]
    buffer = torch.zeros([sizes[axis] for axis in physical], dtype=dtype, device=device)
    logical = buffer.permute([physical.index(axis) for axis in range(5)])
    return list(logical.unbind(0))


def separate(num_blocks: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """CPU's own: one tensor per layer."""
    return [
        torch.zeros(num_blocks, HEADS, TOKENS, CONTENT, dtype=dtype, device=device) for _ in range(NUM_LAYERS)
    ]


def two_rows_a_block(num_blocks: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Twice as many rows as the block manager has blocks."""
    return [
        torch.zeros(2 * num_blocks, HEADS, TOKENS // 2, CONTENT, dtype=dtype, device=device)
        for _ in range(NUM_LAYERS)
    ]


def padded(num_blocks: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Blocks that do not touch each other in memory."""
    rows = torch.zeros(NUM_LAYERS, num_blocks, HEADS, TOKENS, CONTENT + 8, dtype=dtype, device=device)
    return list(rows[..., :CONTENT].unbind(0))


def odd_bytes(num_blocks: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Blocks of a size that no wider element divides."""
    return [torch.zeros(num_blocks, 1, 7, 9, dtype=dtype, device=device) for _ in range(2)]


Maker = Callable[[int, torch.dtype, str], list[torch.Tensor]]

MAKERS: dict[str, Maker] = {
    "separate": separate,
    "two_rows_a_block": two_rows_a_block,
    "padded": padded,
    "odd_bytes": odd_bytes,
    **{
        order: lambda n, dtype, device, order=order: one_buffer(order, n, dtype, device)  # type: ignore[misc]
        for order in ORDERS
    },
}


def fill(tensors: list[torch.Tensor], seed: int) -> None:
    """Every byte random, NaNs and denormals too; what lies between blocks as well."""
    generator = torch.Generator().manual_seed(seed)
    for storage in {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}.values():
        flat = torch.empty(0, dtype=torch.uint8, device=tensors[0].device).set_(storage)
        flat.copy_(torch.randint(0, 256, (flat.numel(),), dtype=torch.uint8, generator=generator))


def block_bytes(tensors: list[torch.Tensor], num_blocks: int, block_id: int) -> bytes:
    """A block's logical content, whatever the layout."""
    parts = []
    for tensor in tensors:
        rows = tensor.shape[0] // num_blocks
        part = tensor[block_id * rows : (block_id + 1) * rows].contiguous().cpu()
        parts.append(part.reshape(-1).view(torch.uint8).numpy().tobytes())
    return b"".join(parts)
