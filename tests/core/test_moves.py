"""Orders to move requests: when they are given, renewed and withdrawn."""

from __future__ import annotations

from llumnix.core.events import (
    AddInstances,
    InstanceDied,
    InstancePlaced,
    InstanceReady,
    InstanceState,
    MoveRequests,
    Reported,
    Tick,
)
from llumnix.core.load import ClassLoad, Headroom, InstanceReport
from llumnix.core.member import Incarnation, Member
from llumnix.core.pairing import pair_by_need, standings
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import LlumnixPlusSettings, SchedulerSettings
from llumnix.core.victims import Candidate, MoveGoal, Sent, next_victim

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


def relief_goal(high_running: int, used_blocks: int) -> MoveGoal:
    """What llumnix+ asks of instance 1, where the important class has 90 of 100 blocks of headroom."""
    settings = SchedulerSettings(headroom={-10: Headroom(90 * 16)})
    classes = {-10: ClassLoad(high_running, 0, high_running), 0: ClassLoad(3, 0, used_blocks - high_running)}
    first = report(uid=1, running=3 + high_running, used_blocks=used_blocks, classes=classes)
    everybody = standings([member(1, first), member(2, report(uid=2, **FREE))], settings)
    (pair,) = pair_by_need(everybody, [], settings)
    assert (pair.source.uid, pair.target.uid) == (1, 2)
    return pair.goal


def member(uid: int, load: InstanceReport) -> Member:
    return Member(f"i{uid}", Incarnation(uid, 1, report=load), InstanceState.RUNNING, "", 0.0)


def test_relief_for_the_sake_of_headroom_leaves_the_target_fairly_free() -> None:
    plus = LlumnixPlusSettings()
    assert relief_goal(high_running=1, used_blocks=40).target_freeness == plus.migrate_in_threshold


def test_relief_of_a_full_instance_may_fill_the_target_further() -> None:
    plus = LlumnixPlusSettings()
    assert relief_goal(high_running=0, used_blocks=99).target_freeness == plus.migrate_out_threshold
