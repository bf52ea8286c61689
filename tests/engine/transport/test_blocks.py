"""Gather and scatter move exactly the bytes of the named blocks, in every memory layout."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llumnix.engine.transport import KVBlocks, TransportError
from llumnix.engine.transport.blocks import DeviceCopier, HostCopier
from llumnix.engine.transport.chunks import ChunkPlan
from tests.engine.transport.caches import MAKERS, ORDERS, block_bytes, fill, one_buffer, separate

NUM_BLOCKS = 12


@pytest.mark.parametrize("copier", [HostCopier, DeviceCopier])
@pytest.mark.parametrize("layout", MAKERS)
@pytest.mark.parametrize("chunk_bytes", [4096, 1 << 20])
def test_blocks_arrive_bit_for_bit_and_nothing_else_changes(
    copier: type[HostCopier] | type[DeviceCopier], layout: str, chunk_bytes: int
) -> None:
    dtype = torch.uint8 if layout == "odd_bytes" else torch.bfloat16
    source, target = MAKERS[layout](NUM_BLOCKS, dtype, "cpu"), MAKERS[layout](NUM_BLOCKS, dtype, "cpu")
    fill(source, 1)
    fill(target, 2)
    before = [block_bytes(target, NUM_BLOCKS, b) for b in range(NUM_BLOCKS)]
    chosen, filled = [7, 0, 3, 4, 5, 11], [2, 9, 8, 1, 0, 5]
    here, there = KVBlocks(source, NUM_BLOCKS), KVBlocks(target, NUM_BLOCKS)
    gatherer, scatterer = copier(here), copier(there)
    assert here.fingerprint == there.fingerprint
    plan = ChunkPlan(len(chosen), here.bytes_per_block, chunk_bytes)
    for index in range(plan.num_chunks):
        chunk = plan.chunk(index)
        staging = torch.zeros(chunk.num_bytes, dtype=torch.uint8)
        blocks = slice(chunk.first, chunk.first + chunk.num_blocks)
        gatherer.gather(chosen[blocks], chunk.start, chunk.end, staging)
        scatterer.scatter(filled[blocks], chunk.start, chunk.end, staging)
    for block_id in range(NUM_BLOCKS):
        now = block_bytes(target, NUM_BLOCKS, block_id)
        if block_id in filled:
            assert now == block_bytes(source, NUM_BLOCKS, chosen[filled.index(block_id)])
        else:
            assert now == before[block_id]


@pytest.mark.parametrize("layout", MAKERS)
def test_both_copiers_stage_a_block_alike(layout: str) -> None:
    tensors = MAKERS[layout](NUM_BLOCKS, torch.uint8, "cpu")
    fill(tensors, 3)
    blocks = KVBlocks(tensors, NUM_BLOCKS)
    ids = random.Random(4).sample(range(NUM_BLOCKS), 5)
    staged = [torch.zeros(5 * blocks.bytes_per_block, dtype=torch.uint8) for _ in range(2)]
    HostCopier(blocks).gather(ids, 0, blocks.bytes_per_block, staged[0])
    DeviceCopier(blocks).gather(ids, 0, blocks.bytes_per_block, staged[1])
    assert torch.equal(staged[0], staged[1])


@pytest.mark.parametrize("order", ["BLHNC", "BLNHC", "BHLNC"])
def test_a_block_of_all_layers_is_one_extent_where_blocks_are_outermost(order: str) -> None:
    assert len(KVBlocks(one_buffer(order, 4, torch.float32, "cpu"), 4).layout.extents) == 1


def test_a_layer_that_shares_its_cache_with_another_is_moved_once() -> None:
    layers = separate(4, torch.float32, "cpu")
    assert KVBlocks([*layers, layers[0]], 4).bytes_per_block == KVBlocks(layers, 4).bytes_per_block


def test_fingerprints_differ_exactly_where_bytes_would_mean_something_else() -> None:
    def of(order: str, dtype: torch.dtype = torch.float32, num_blocks: int = 4) -> bytes:
        return KVBlocks(one_buffer(order, num_blocks, dtype, "cpu"), num_blocks).fingerprint

    assert all(of(order) == of(order, num_blocks=9) for order in ORDERS)
    assert of("LBHNC") == of("BLHNC")
    assert of("LBNHC") == of("BLNHC")
    assert len({of(order) for order in ("LBHNC", "LBNHC", "BHLNC", "LHBNC")}) == 4
    assert of("BLHNC") != of("BLHNC", torch.bfloat16)


@pytest.mark.parametrize("ids", [[-1], [4], [1, 1]])
def test_block_ids_outside_of_the_cache_or_doubled_are_refused(ids: list[int]) -> None:
    with pytest.raises(TransportError):
        KVBlocks(separate(4, torch.float32, "cpu"), 4).check_ids(ids)


def test_caches_that_cannot_be_moved_are_refused() -> None:
    rows = separate(5, torch.float32, "cpu")
    with pytest.raises(TransportError, match="no multiple"):
        KVBlocks(rows, 2)
    with pytest.raises(TransportError, match="overlapping"):
        KVBlocks([torch.zeros(4, 8).unfold(1, 4, 1)], 4)
    with pytest.raises(TransportError, match="several dtypes"):
        KVBlocks([torch.zeros(4, 8), torch.zeros(4, 8, dtype=torch.int8)], 4)


@settings(max_examples=200, deadline=None)
@given(num_blocks=st.integers(0, 40), bytes_per_block=st.integers(1, 30_000), pages=st.integers(1, 5))
def test_chunks_cover_every_byte_once_and_none_is_larger_than_allowed(
    num_blocks: int, bytes_per_block: int, pages: int
) -> None:
    plan = ChunkPlan(num_blocks, bytes_per_block, pages * 4096)
    position = 0
    for index in range(plan.num_chunks):
        chunk = plan.chunk(index)
        assert 0 < chunk.num_bytes <= plan.chunk_bytes
        assert chunk.first * bytes_per_block + chunk.start == position
        position += chunk.num_bytes
    assert position == num_blocks * bytes_per_block
