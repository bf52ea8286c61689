"""Instances with several workers: every rank's blocks go to the same rank, and a transfer is that of all."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from llumnix.engine.migration.rank_transport import Cancel, RankTransportOptions
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
    """An engine thread and its workers, which take calls on threads of their own, one after the other."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.workers = [Worker(rank, seed) for rank in range(NUM_RANKS)]
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.threads = [ThreadPoolExecutor(1) for _ in self.workers]
        self.engine = ThreadPoolExecutor(1)
        self.calls: list[str] = []
        options = RankTransportOptions("auto", "127.0.0.1", True, f"ipc://{directory}/ranks{seed}")
        self.transports = RankTransports(self.call, self.tell, NUM_RANKS, options, self.engine.submit)

    def call(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        return [getattr(worker, method)(*args) for worker in self.workers]

    def tell(self, method: str, orders: bytes) -> None:
        self.calls.append(method)
        for worker, thread in zip(self.workers, self.threads, strict=True):
            thread.submit(lambda w: (self.may_go_on.wait(), getattr(w, method)(orders)), worker)

    def send(self, *args: Any) -> Transfer:
        return self.engine.submit(self.transports.send, *args).result()

    def receive(self, *args: Any) -> Transfer:
        return self.engine.submit(self.transports.receive, *args).result()

    def cancel(self, transfer: Transfer) -> None:
        self.engine.submit(self.transports.cancel, transfer).result()

    def end(self) -> None:
        self.may_go_on.set()
        for thread in self.threads:  # not the engine: news of ranks may still come
            thread.shutdown(cancel_futures=True)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Instance, Instance]]:
    instances = Instance(1, tmp_path), Instance(2, tmp_path)
    yield instances
    for instance in instances:
        instance.end()


def ends() -> tuple[Callable[[Transfer, Outcome], None], Callable[[], Outcome]]:
    """A completion callback, and a wait for its outcome."""
    told: queue.Queue[Outcome] = queue.Queue()
    return (lambda _, outcome: told.put(outcome)), (lambda: told.get(timeout=60))


def test_every_rank_sends_its_blocks_to_the_same_rank(pair: tuple[Instance, Instance]) -> None:
    source, target = pair
    (sent, source_end), (received, target_end) = ends(), ends()
    before = [worker.blocks([0, 7]) for worker in target.workers]
    source.send(target.transports.address, "t", [1, 2], sent)
    target.receive(source.transports.address, "t", [5, 3], received)
    assert source_end().kind is target_end().kind is OutcomeKind.DONE
    for rank in range(NUM_RANKS):
        there, here = source.workers[rank].blocks([1, 2]), target.workers[rank].blocks([5, 3])
        assert all(torch.equal(x, y) for x, y in zip(there, here, strict=True))
        kept = target.workers[rank].blocks([0, 7])
        assert all(torch.equal(x, y) for x, y in zip(before[rank], kept, strict=True))
    for side in pair:
        side.engine.submit(side.transports.ended, "t").result()


def test_the_bytes_of_all_ranks_count(pair: tuple[Instance, Instance]) -> None:
    source, target = pair
    (sent, source_end), (received, _) = ends(), ends()
    source.send(target.transports.address, "t", [4], sent)
    target.receive(source.transports.address, "t", [4], received)
    assert source_end().num_bytes == NUM_RANKS * 3 * 2 * 8 * 4 * 4


def test_a_transfer_ends_once_every_rank_has_ended_its_part(pair: tuple[Instance, Instance]) -> None:
    source, target = pair
    done, end = ends()
    transfer = source.send(target.transports.address, "nobody takes it", [1], done)
    assert transfer.outcome is None
    orders = msgspec.msgpack.encode([Cancel("nobody takes it"), Cancel("unknown")])
    source.threads[0].submit(source.workers[0].llumnix_transport_orders, orders)  # one rank only
    until(lambda: transfer.missing == {1})  # type: ignore[attr-defined]
    assert transfer.outcome is None
    source.cancel(transfer)
    outcome = end()
    assert outcome.kind is OutcomeKind.CANCELLED and outcome.reason.startswith("rank 0")
    assert transfer.outcome == outcome


def test_what_no_rank_can_begin_fails_with_the_reason(pair: tuple[Instance, Instance]) -> None:
    source, target = pair
    done, end = ends()
    transfer = source.send(target.transports.address, "t", [NUM_BLOCKS], done)
    outcome = end()
    assert outcome.kind is OutcomeKind.FAILED
    assert outcome.reason == f"rank 0: a block id is outside of 0..{NUM_BLOCKS - 1}."
    assert transfer.outcome == outcome


def test_the_engine_waits_for_no_rank_and_takes_up_one_place_in_their_queue(
    pair: tuple[Instance, Instance],
) -> None:
    source, target = pair
    names = [f"t{n}" for n in range(12)]
    source_ends, target_ends = [], []
    source.may_go_on.clear()  # its workers are in a step that does not end before all is asked for
    for n, name in enumerate(names):
        (sent, source_end), (received, target_end) = ends(), ends()
        source.send(target.transports.address, name, [n], sent)
        target.receive(source.transports.address, name, [n], received)
        source_ends.append(source_end)
        target_ends.append(target_end)
    assert len(source.calls) == 1
    source.may_go_on.set()
    assert {end().kind for end in (*source_ends, *target_ends)} == {OutcomeKind.DONE}
    assert len(source.calls) == 2
    for mine, theirs in zip(source.workers, target.workers, strict=True):
        there, here = mine.blocks(list(range(12))), theirs.blocks(list(range(12)))
        assert all(torch.equal(x, y) for x, y in zip(there, here, strict=True))
