"""The transports' conformance suite on real GPUs; each side is a process of its own, as in production.

cuda_ipc runs with both sides on one GPU. nccl needs two GPUs, or NCCL 2.30 with NCCL_MULTI_RANK_GPU_ENABLE=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from llumnix.engine.transport import KVBlocks, TransportError, choose, local_facts
from llumnix.engine.transport.blocks import DeviceCopier
from llumnix.engine.transport.nccl_library import NcclLibrary
from tests.engine.transport.caches import MAKERS, block_bytes, fill
from tests.engine.transport.conformance import (
    ALL,
    MakePair,
    NothingComesLate,
    RefusesAndEnds,
    TransfersBlocks,
    moved,
)
from tests.engine.transport.peers import PeerSide
from tests.engine.transport.sides import QUICK, WAIT_S

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]

_ONE_GPU_NCCL = 23000


def _devices(transport: str) -> tuple[str, str]:
    """Where the two sides' blocks are; skips what this machine cannot do."""
    if transport == "cuda_ipc":
        return "cuda:0", "cuda:0"
    if torch.cuda.device_count() > 1:
        return "cuda:0", "cuda:1"
    try:
        version = NcclLibrary.load().version
    except TransportError as error:
        pytest.skip(str(error))
    if version < _ONE_GPU_NCCL or os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") != "1":
        pytest.skip(f"one GPU only, and NCCL {version} takes no two ranks on it as it is set")
    return "cuda:0", "cuda:0"


class _Peers:
    def __init__(self, transport: str) -> None:
        self.transport = transport
        self.devices = _devices(transport)
        self._made: list[PeerSide] = []

    def pair(self, **arguments: Any) -> tuple[PeerSide, PeerSide]:
        """NCCL's first connection in a process takes seconds."""
        settings = {"settings": replace(QUICK, open_timeout_s=WAIT_S)}
        for seed, device in zip((1, 2), self.devices, strict=True):
            shape = {"transport": self.transport, "seed": seed, "device": device}
            self._made.append(PeerSide(**{**settings, **shape, **arguments}))
        return self._made[-2], self._made[-1]

    def end(self) -> None:
        for peer in self._made:
            peer.end()


@pytest.fixture(params=["cuda_ipc", "nccl"])
def peers(request: pytest.FixtureRequest) -> Iterator[_Peers]:
    made = _Peers(request.param)
    yield made
    made.end()


@pytest.fixture
def make_pair(peers: _Peers) -> MakePair:
    return peers.pair


@pytest.fixture
def num_late_cases() -> int:
    return 100


class TestTransfersOnGpu(TransfersBlocks):
    pass


class TestEndsOnGpu(RefusesAndEnds):
    pass


class TestLateWritesOnGpu(NothingComesLate):
    pass


@pytest.mark.parametrize("victim_receives", [True, False])
def test_a_killed_peer_is_noticed_and_another_takes_its_place(peers: _Peers, victim_receives: bool) -> None:
    patient = replace(QUICK, open_timeout_s=WAIT_S, peer_timeout_s=10 * WAIT_S)
    a, b = peers.pair(settings=patient)
    victim, survivor = (b, a) if victim_receives else (a, b)
    victim.allow(3)
    b.receive("cut", ALL)
    a.send(b.address(), "cut", ALL)
    victim.wait_passed(3)
    victim.kill()
    assert survivor.wait("cut")[0] == "failed"
    survivor.settle()
    _, fresh = peers.pair(settings=patient)
    moved("again", survivor, fresh, ALL, ALL)
    assert survivor.blocks() == fresh.blocks()


def test_a_hung_peer_is_given_up(peers: _Peers) -> None:
    a, b = peers.pair(settings=replace(QUICK, open_timeout_s=WAIT_S, peer_timeout_s=1.5))
    b.allow(3)
    b.receive("cut", ALL)
    a.send(b.address(), "cut", ALL)
    b.wait_passed(3)
    b.stop()
    assert a.wait("cut")[0] == "failed"
    b.resume()
    assert b.wait("cut")[0] == "failed"


@pytest.mark.parametrize("layout", [name for name in MAKERS if name != "odd_bytes"])
def test_blocks_are_gathered_and_scattered_exactly_on_their_own_stream(layout: str) -> None:
    source, target = (MAKERS[layout](12, torch.bfloat16, "cuda") for _ in range(2))
    fill(source, 1)
    fill(target, 2)
    here, there = KVBlocks(source, 12), KVBlocks(target, 12)
    before = [block_bytes(target, 12, block_id) for block_id in range(12)]
    chosen, filled = [7, 0, 3, 11], [2, 9, 1, 5]
    staging = torch.zeros(4 * here.bytes_per_block, dtype=torch.uint8, device="cuda")
    gatherer, scatterer = here.copier(), there.copier()
    assert isinstance(gatherer, DeviceCopier)
    gatherer.wait_for(here.fence())
    gatherer.gather(chosen, 0, here.bytes_per_block, staging)
    scatterer.wait_for(there.fence())
    scatterer.scatter(filled, 0, there.bytes_per_block, staging)
    for block_id in range(12):
        expected = (
            block_bytes(source, 12, chosen[filled.index(block_id)])
            if block_id in filled
            else before[block_id]
        )
        assert block_bytes(target, 12, block_id) == expected


def test_a_copy_comes_after_what_the_caller_s_stream_was_given_before() -> None:
    tensors = MAKERS["BLHNC"](12, torch.bfloat16, "cuda")
    blocks = KVBlocks(tensors, 12)
    staging = torch.zeros(blocks.bytes_per_block, dtype=torch.uint8, device="cuda")
    copier = blocks.copier()
    torch.cuda._sleep(200_000_000)  # the model is still busy
    for tensor in tensors:
        tensor[3].view(torch.uint8).fill_(0x5A)
    copier.wait_for(blocks.fence())
    copier.gather([3], 0, blocks.bytes_per_block, staging)
    assert set(staging.tolist()) == {0x5A}


def test_auto_takes_cuda_ipc_on_one_gpu() -> None:
    facts = local_facts(KVBlocks(MAKERS["BLHNC"](2, torch.bfloat16, "cuda"), 2))
    assert choose("auto", facts, facts).transport == "cuda_ipc"
