"""All transports in one process; nccl and cuda_ipc over fakes of NCCL and of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llumnix.engine.transport.cuda_ipc import CudaIpcPlanes
from llumnix.engine.transport.nccl import NcclPlanes
from llumnix.engine.transport.nccl_library import NcclLibrary
from llumnix.engine.transport.plane import PlaneSource
from tests.engine.transport.conformance import MakePair, NothingComesLate, RefusesAndEnds, TransfersBlocks
from tests.engine.transport.fakes import FakeGpu, FakeNccl
from tests.engine.transport.sides import Side, real_planes


@pytest.fixture(params=["shm", "gloo", "nccl", "cuda_ipc", "cuda_ipc of two GPUs"])
def make_pair(request: pytest.FixtureRequest) -> Iterator[MakePair]:
    transport, _, of_two_gpus = request.param.partition(" ")
    nccl, gpu = FakeNccl(), FakeGpu(sees_all_as_own=not of_two_gpus)
    sides: list[Side] = []

    def planes(transport: str) -> PlaneSource:
        match transport:
            case "nccl":
                return NcclPlanes(NcclLibrary(nccl), FakeGpu(nccl))
            case "cuda_ipc":
                return CudaIpcPlanes(gpu)
        return real_planes(transport)

    def make(**arguments: Any) -> tuple[Side, Side]:
        sides.extend(Side(transport, seed, planes=planes, **arguments) for seed in (1, 2))
        return sides[-2], sides[-1]

    yield make
    for side in sides:
        side.close()
        assert side.num_further_ends() == 0
    assert not nccl.alive()
    assert not gpu.mapped
    assert not gpu.freed_while_mapped


@pytest.fixture
def num_late_cases() -> int:
    return 100


class TestTransfers(TransfersBlocks):
    pass


class TestEnds(RefusesAndEnds):
    pass


class TestLateWrites(NothingComesLate):
    pass
