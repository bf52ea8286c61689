"""Auto-scaling: what the load is measured by, bounds, hold times, and who goes first."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llumnix.core.events import (
    AddInstances,
    CommandRefused,
    Drain,
    HeldRequests,
    InstancePlaced,
    InstanceReady,
    InstanceState,
    Record,
    Reported,
    ScaleTo,
    StartInstance,
    TerminationNotice,
    Tick,
)
from llumnix.core.load import ClassLoad, Headroom
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import ScalingSettings, SchedulerSettings

from .reports import report

S = InstanceState
NORMAL_LOAD = {"running": 4, "used_blocks": 20}
"""Freeness 20."""


class Cluster:
    """Running instances that report the same load again and again."""

    def __init__(self, num: int, **scaling: Any) -> None:
        settings = {"enabled": True, "max_instances": 8, "hold_s": 4.0, "interval_s": 1.0} | scaling
        self.scheduler = Scheduler(
            SchedulerSettings(
                policy="load",
                scaling=ScalingSettings(**settings),
                headroom={-10: Headroom(1600)},
                heartbeat_timeout_s=math.inf,
            )
        )
        self.scheduler.handle(AddInstances(num), 0.0)
        for uid in range(1, num + 1):
            self.start(uid)
        self.now = 0.0
        self.seq = 0

    def start(self, uid: int) -> None:
        self.scheduler.handle(InstancePlaced(uid, "n0", uid), 0.0)
        self.scheduler.handle(InstanceReady(uid), 0.0)

    def live(self, seconds: float, **loads: dict[str, Any]) -> list[str]:
        """What scaling said meanwhile; loads are given as u1={...}, all others are NORMAL_LOAD."""
        said, end = [], self.now + seconds
        while self.now < end:
            self.now += 0.25
            self.seq += 1
            for view in self.scheduler.instances():
                load = loads.get(f"u{view.uid}", NORMAL_LOAD)
                self.scheduler.handle(Reported(report(uid=view.uid, seq=self.seq, **load)), self.now)
            actions = self.scheduler.handle(Tick(), self.now)
            said += [a.message for a in actions if isinstance(a, Record) and a.kind.startswith("scale.")]
        return said

    def states(self) -> list[S]:
        return [view.state for view in self.scheduler.instances()]


FULL, IDLE = {"running": 4, "used_blocks": 96}, {"running": 0}


def test_scaling_section_4_4_the_mean_freeness_between_the_bounds_is_left_alone() -> None:
    cluster = Cluster(3)
    assert cluster.live(60) == []
    assert cluster.live(60, u1=FULL, u2=FULL, u3={"running": 2, "used_blocks": 4}) == []


def test_scaling_section_4_4_headroom_is_no_load_of_normal_priority() -> None:
    high = {"running": 4, "used_blocks": 20, "classes": {-10: ClassLoad(4, 0, 20)}}
    assert Cluster(2).live(60, u1=high, u2=high) == []


def test_a_bound_that_is_crossed_for_a_moment_changes_nothing() -> None:
    cluster = Cluster(2)
    for _ in range(10):
        assert cluster.live(3, u1=FULL, u2=FULL) == []
        assert cluster.live(1.5) == []


def test_one_instance_at_a_time_and_none_above_the_maximum() -> None:
    cluster = Cluster(2, max_instances=3)
    full = {"u1": FULL, "u2": FULL, "u3": FULL}
    assert cluster.live(30, **full) == ["mean freeness 1.0 < 10 for 4 s"]
    cluster.start(3)
    assert cluster.live(30, **full) == []
    assert cluster.states() == [S.RUNNING] * 3


def test_nothing_goes_below_the_minimum_and_not_all_at_once() -> None:
    cluster = Cluster(4, min_instances=2)
    idle = {f"u{uid}": IDLE for uid in range(1, 5)}
    said = cluster.live(5.5, **idle)
    assert said == ["mean freeness 100.0 > 60 for 4 s; i3 runs the fewest requests (0)"]
    assert len(cluster.live(60, **idle)) == 1
    assert cluster.states()[:2] == [S.RUNNING] * 2


def test_what_is_ready_is_not_given_up_for_what_still_starts() -> None:
    cluster = Cluster(2, min_instances=2)
    cluster.scheduler.handle(AddInstances(1), 0.0)
    cluster.live(30, u1=IDLE, u2=IDLE)
    assert cluster.states() == [S.RUNNING, S.RUNNING, S.STOPPING], "the one without a place went"


def test_requests_that_are_held_count_as_load() -> None:
    cluster = Cluster(2)
    cluster.scheduler.handle(HeldRequests(0, 3, 16 * 100, 500, 0), 0.0)
    assert cluster.live(6) == ["mean freeness 7.5 < 10 for 4 s"]


def test_scaling_that_is_off_does_nothing() -> None:
    assert Cluster(2, enabled=False).live(60, u1=FULL, u2=FULL) == []


def test_an_operators_drain_is_not_taken_back_when_more_is_needed() -> None:
    cluster = Cluster(3)
    cluster.scheduler.handle(Drain("i0", float("inf"), remove=True), 0.0)
    cluster.live(6, u1=FULL, u2=FULL, u3=FULL)
    assert cluster.states() == [S.DRAINING, S.RUNNING, S.RUNNING, S.PENDING]


@pytest.mark.parametrize("count", [0, 9])
def test_a_number_outside_the_bounds_is_refused(count: int) -> None:
    with pytest.raises(CommandRefused, match=rf"{count} instances: expected 1 to 8 \(instances.min"):
        Cluster(3).scheduler.handle(ScaleTo(count), 1.0)


def test_no_more_are_added_than_the_bounds_allow() -> None:
    cluster = Cluster(3)
    with pytest.raises(CommandRefused, match=r"6 more than 3 instances: .* at most 8 \(instances.max"):
        cluster.scheduler.handle(AddInstances(6), 1.0)
    cluster.scheduler.handle(AddInstances(5), 1.0)
    assert len(cluster.states()) == 8


def test_an_instance_that_is_to_be_taken_away_is_replaced_only_below_the_minimum() -> None:
    for minimum, replaced in ((3, True), (2, False)):
        cluster = Cluster(3, enabled=False, min_instances=minimum)
        actions = cluster.scheduler.handle(TerminationNotice("i1", 30), 1.0)
        assert any(isinstance(action, StartInstance) for action in actions) == replaced
        view = cluster.scheduler.instance("i1")
        assert (view.state, view.removing, view.drain_deadline) == (S.DRAINING, True, 29.0)
