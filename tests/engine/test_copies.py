"""Copies between the state machines and the transports."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llumnix.core.handover import actions as act
from llumnix.core.handover import events as ev
from llumnix.engine.copies import Copies, Sent
from llumnix.engine.transport import KVBlocks
from llumnix.engine.transport_set import TransportSet

NUM_BLOCKS = 4
KEY = ("m", 1)


class Source:
    """The engine's blocks: a frozen, quiet request that holds all of them."""

    def __init__(self) -> None:
        self.holds: set[int] = set()

    def progress(self, _: str) -> Any:
        return SimpleNamespace(frozen=True, quiet=True)

    def last_blocks(self, _: str, first: int) -> list[tuple[int, int]]:
        return list(enumerate(range(NUM_BLOCKS)))[first:]

    def hold(self, _: Sequence[int]) -> int:
        self.holds.add(1)
        return 1

    def drop_hold(self, hold: int) -> None:
        self.holds.remove(hold)


class Side:
    """One instance's copies; `turns` is its input queue."""

    def __init__(self) -> None:
        blocks = KVBlocks([torch.zeros(NUM_BLOCKS, 64)], NUM_BLOCKS)
        self.transports = TransportSet(blocks, "shm", "127.0.0.1", one_node=True)
        self.source: Any = Source()
        self.told: list[ev.Event] = []
        self.turns: queue.Queue[Callable[[], object]] = queue.Queue()
        self.copies = Copies(self.source, self.transports, lambda: 0.0, self.turns.put, self.tell)
        self.hears_of_an_abort_first = False

    def tell(self, event: ev.Event) -> None:
        """As the llumlet does: the machines hear of an abort before they hear of the copy's end."""
        if self.hears_of_an_abort_first:
            self.copies.cancel(KEY)
        self.told.append(event)

    def take_turn(self) -> None:
        self.turns.get(timeout=30)()


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    pair = Side(), Side()
    yield pair
    for side in pair:
        side.transports.close()


def test_an_abort_that_comes_to_light_with_the_end_of_its_copy_leaves_the_engine_alive(
    sides: tuple[Side, Side],
) -> None:
    source, target = sides
    source.hears_of_an_abort_first = True
    copy = act.CopyBlocks("m", 1, peer=2, engine_id="a", first_block=0, num_blocks=NUM_BLOCKS, stage=1)
    source.copies.send(copy, target.transports.address, Sent())
    expected = act.ReceiveBlocks("m", 1, peer=1, first_block=0, num_blocks=NUM_BLOCKS)
    target.copies.receive(expected, source.transports.address, range(NUM_BLOCKS))
    source.take_turn()
    target.take_turn()
    assert source.told == target.told == [ev.CopyDone(*KEY)]
    assert source.source.holds == {1}  # until the machine releases it
    source.copies.release(KEY)
    assert source.source.holds == set()
    assert not source.copies and not target.copies
