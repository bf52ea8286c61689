"""Orders to move requests: when they are given, renewed and withdrawn."""

from __future__ import annotations

from llumnix.core.events import (
    AddInstances,
    InstanceDied,
    InstancePlaced,
    InstanceReady,
    MoveRequests,
    Reported,
    Tick,
)
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import SchedulerSettings
from llumnix.core.victims import Candidate, Sent, next_victim

from .reports import report

FULL = {"running": 4, "used_blocks": 99}
FREE = {"running": 4, "used_blocks": 20}


class Pair:
    """Instance 1 is full and 2 is free, under the paper's policy; one round every 0.25 s."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(SchedulerSettings(policy="llumnix"))
        self.now, self.seq = 0.0, 0
        self.scheduler.handle(AddInstances(2), self.now)
        for uid in (1, 2):
            self.scheduler.handle(InstancePlaced(uid, "n0", uid), self.now)
            self.scheduler.handle(InstanceReady(uid), self.now)
        (self.order,) = self.round(FULL, FREE)

    def round(self, first: dict[str, int], second: dict[str, int]) -> list[MoveRequests]:
        self.now, self.seq = self.now + 0.25, self.seq + 1
        for uid, fields in ((1, first), (2, second)):
            self.scheduler.handle(Reported(report(uid=uid, seq=self.seq, **fields)), self.now)
        return [a for a in self.scheduler.handle(Tick(), self.now) if isinstance(a, MoveRequests)]


def moves_nothing(order: MoveRequests) -> bool:
    candidate = Candidate("r", priority=0, num_tokens=16, num_blocks=1)
    return next_victim([candidate], report(**FULL), order.goal, Sent()) is None


def test_an_order_is_renewed_while_it_is_wanted() -> None:
    pair = Pair()
    assert not moves_nothing(pair.order)
    assert pair.round(FULL, FREE) == [pair.order]


def test_an_order_is_withdrawn_once_when_the_source_has_enough_room() -> None:
    pair = Pair()
    (withdrawal,) = pair.round({"running": 3, "used_blocks": 60}, FREE)
    assert (withdrawal.source, withdrawal.target) == (1, 2)
    assert moves_nothing(withdrawal)
    assert pair.round({"running": 3, "used_blocks": 60}, FREE) == []


def test_an_order_is_withdrawn_when_the_target_is_as_full_as_the_source() -> None:
    (withdrawal,) = Pair().round(FULL, FULL)
    assert moves_nothing(withdrawal)


def test_nobody_is_told_of_an_order_whose_target_died() -> None:
    pair = Pair()
    pair.scheduler.handle(InstanceDied(2, "gone"), pair.now)
    assert pair.round(FULL, FREE) == []
