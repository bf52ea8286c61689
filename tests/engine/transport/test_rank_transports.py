"""Instances with several workers: every rank's blocks go to the same rank, and a transfer is that of all."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llumnix.engine.migration.rank_transport import RankTransportOptions
from llumnix.engine.migration.worker import MigrationWorker
from llumnix.engine.rank_transports import RankTransports
from llumnix.engine.transport import Outcome, OutcomeKind, Transfer
from tests.engine.transport.conformance import until

NUM_RANKS, NUM_BLOCKS = 2, 16


class Worker(MigrationWorker):
    """One rank, in this process: what vLLM's executor would reach by a call."""

    def __init__(self, rank: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(100 * seed + rank)
        self.rank = rank
        self.views = [torch.randn(NUM_BLOCKS, 2, 8, 4, generator=generator) for _ in range(3)]

    def llumnix_kv_views(self) -> list[torch.Tensor]:
        return self.views

    def blocks(self, ids: list[int]) -> list[torch.Tensor]:
        return [view[ids].clone() for view in self.views]


class Instance:
    def __init__(self, seed: int, directory: Path) -> None:
        self.workers = [Worker(rank, seed) for rank in range(NUM_RANKS)]
        options = RankTransportOptions("auto", "127.0.0.1", True, f"ipc://{directory}/ranks{seed}")
        self.transports = RankTransports(self.call, NUM_RANKS, options)

    def call(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        return [getattr(worker, method)(*args) for worker in self.workers]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Instance, Instance]:
    return Instance(1, tmp_path), Instance(2, tmp_path)


def ends() -> tuple[Callable[[Transfer, Outcome], None], Callable[[], Outcome]]:
    """A completion callback, and a wait for its outcome."""
    told: queue.Queue[Outcome] = queue.Queue()
    return (lambda _, outcome: told.put(outcome)), (lambda: told.get(timeout=60))


def test_every_rank_sends_its_blocks_to_the_same_rank(pair: tuple[Instance, Instance]) -> None:
    source, target = pair
    a, b = source.transports, target.transports
    (sent, source_end), (received, target_end) = ends(), ends()
    before = [worker.blocks([0, 7]) for worker in target.workers]
    a.send(b.address, "t", [1, 2], sent)
    b.receive(a.address, "t", [5, 3], received)
    assert source_end().kind is target_end().kind is OutcomeKind.DONE
    for rank in range(NUM_RANKS):
        there, here = source.workers[rank].blocks([1, 2]), target.workers[rank].blocks([5, 3])
        assert all(torch.equal(x, y) for x, y in zip(there, here, strict=True))
        kept = target.workers[rank].blocks([0, 7])
        assert all(torch.equal(x, y) for x, y in zip(before[rank], kept, strict=True))
    for side in (a, b):
        side.ended("t")


def test_the_bytes_of_all_ranks_count(pair: tuple[Instance, Instance]) -> None:
    a, b = (instance.transports for instance in pair)
    (sent, source_end), (received, _) = ends(), ends()
    a.send(b.address, "t", [4], sent)
    b.receive(a.address, "t", [4], received)
    assert source_end().num_bytes == NUM_RANKS * 3 * 2 * 8 * 4 * 4


def test_a_transfer_ends_once_every_rank_has_ended_its_part(pair: tuple[Instance, Instance]) -> None:
    source, target = pair
    a, b = source.transports, target.transports
    done, end = ends()
    transfer = a.send(b.address, "nobody takes it", [1], done)
    assert transfer.outcome is None
    source.workers[0].llumnix_cancel_transfer("nobody takes it")  # one rank only
    source.workers[0].llumnix_cancel_transfer("unknown")
    until(lambda: transfer.missing == {1})  # type: ignore[attr-defined]
    assert transfer.outcome is None
    a.cancel(transfer)
    outcome = end()
    assert outcome.kind is OutcomeKind.CANCELLED and outcome.reason.startswith("rank 0")
    assert transfer.outcome == outcome


def test_what_no_rank_can_begin_fails_with_the_reason(pair: tuple[Instance, Instance]) -> None:
    a, b = (instance.transports for instance in pair)
    done, end = ends()
    transfer = a.send(b.address, "t", [NUM_BLOCKS], done)
    outcome = end()
    assert outcome.kind is OutcomeKind.FAILED
    assert outcome.reason == f"rank 0: a block id is outside of 0..{NUM_BLOCKS - 1}."
    assert transfer.outcome == outcome
