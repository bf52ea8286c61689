"""Copies that begin while the target's engine still runs a step, before it has heard of them."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from llumnix.core.handover import actions as act
from llumnix.core.handover import events as ev
from llumnix.core.handover.messages import Stage
from llumnix.engine.copies import Copies
from llumnix.engine.transport import KVBlocks, Outcome, Transfer
from llumnix.engine.transport_set import TransportSet
from tests.engine.test_copies import Side

NUM_BLOCKS = 8
STAGE = Stage("m", 1, first_block=2, num_blocks=2)
KEY = "m/1"


class Sender:
    """The source: its blocks, full of ones."""

    def __init__(self) -> None:
        self.kv = torch.ones(NUM_BLOCKS, 64)
        self.transports = TransportSet(KVBlocks([self.kv], NUM_BLOCKS), "shm", "127.0.0.1", one_node=True)
        self.ended: queue.Queue[Outcome] = queue.Queue()

    def send(self, to: Target, blocks: Sequence[int]) -> None:
        def done(_: Transfer, outcome: Outcome) -> None:
            self.ended.put(outcome)

        self.transports.send(to.transports.address, KEY, blocks, done)


class Target:
    """An engine in the middle of a step: `turns` waits until the test takes them."""

    def __init__(self) -> None:
        self.kv = torch.zeros(NUM_BLOCKS, 64)
        self.transports = TransportSet(KVBlocks([self.kv], NUM_BLOCKS), "shm", "127.0.0.1", one_node=True)
        self.told: list[ev.Event] = []
        self.turns: queue.Queue[Callable[[], object]] = queue.Queue()
        copies = Copies(Side().source, self.transports, lambda: 0.0, self.turns.put, self.told.append)
        assert copies.early is not None
        self.copies, self.early = copies, copies.early

    def hear(self, stage: Stage, peer: Sender) -> None:
        heard = act.ReceiveBlocks("m", stage.copy, 1, stage.first_block, stage.num_blocks)
        self.copies.receive(heard, peer.transports.address, range(NUM_BLOCKS))

    def take_turn(self) -> None:
        self.turns.get(timeout=30)()

    def written(self) -> list[int]:
        return [n for n in range(NUM_BLOCKS) if self.kv[n].any()]


@pytest.fixture
def pair() -> Iterator[tuple[Sender, Target]]:
    sides = Sender(), Target()
    yield sides
    for side in sides:
        side.transports.close()


def test_blocks_come_while_the_stage_is_unheard_and_its_end_is_told_once_it_is(
    pair: tuple[Sender, Target],
) -> None:
    source, target = pair
    target.early.allow("m", 0, range(NUM_BLOCKS))
    target.early.begin(STAGE, source.transports.address)
    source.send(target, [5, 6])
    source.ended.get(timeout=30)
    target.take_turn()
    assert target.written() == [2, 3] and target.told == []
    target.hear(STAGE, source)
    target.take_turn()
    assert target.told == [ev.CopyDone("m", 1)]
    assert target.early.is_quiet("m") and not target.copies


def test_a_copy_that_is_heard_of_while_it_runs_is_told_and_cancelled_as_any_other(
    pair: tuple[Sender, Target],
) -> None:
    source, target = pair
    target.early.allow("m", 0, range(NUM_BLOCKS))
    target.early.begin(STAGE, source.transports.address)
    target.hear(STAGE, source)
    target.copies.cancel(("m", 1))
    target.take_turn()
    assert target.told == [ev.CancelConfirmed("m", 1)] and not target.copies


def test_a_reservation_is_given_back_only_once_an_unheard_copy_no_longer_writes_it(
    pair: tuple[Sender, Target],
) -> None:
    source, target = pair
    freed: list[str] = []
    target.early.allow("m", 0, range(NUM_BLOCKS))
    target.early.begin(STAGE, source.transports.address)
    target.early.close("m", lambda: freed.append("m"))
    assert freed == []
    target.take_turn()  # the transport's confirmation
    assert freed == ["m"] and target.told == []
    target.early.begin(Stage("m", 2, 2, 2), source.transports.address)
    assert target.early.is_quiet("m")


def test_a_reservation_is_given_back_at_once_when_an_unheard_copy_has_ended(
    pair: tuple[Sender, Target],
) -> None:
    source, target = pair
    freed: list[str] = []
    target.early.allow("m", 0, range(NUM_BLOCKS))
    target.early.begin(STAGE, source.transports.address)
    source.send(target, [5, 6])
    target.take_turn()
    target.early.close("m", lambda: freed.append("m"))
    assert freed == ["m"]


@pytest.mark.parametrize(
    "stage",
    [Stage("m", 1, 1, 2), Stage("m", 1, 5, 2), Stage("m", 1, 2, 0), Stage("other", 1, 2, 2)],
    ids=["of the prefix cache", "beyond the reservation", "of no blocks", "of another migration"],
)
def test_nothing_begins_early_outside_of_a_reservation(pair: tuple[Sender, Target], stage: Stage) -> None:
    source, target = pair
    target.early.allow("m", 2, range(6))
    target.early.begin(stage, source.transports.address)
    assert target.early.is_quiet(stage.migration)


def test_what_cannot_begin_early_is_left_to_the_engine_thread(pair: tuple[Sender, Target]) -> None:
    source, target = pair
    target.early.allow("m", 0, [0, 1, 2, NUM_BLOCKS])  # no such block
    target.early.begin(STAGE, source.transports.address)
    assert target.early.is_quiet("m")
