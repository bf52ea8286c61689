"""A scheduler that takes over from another: processes, numbers, tables and an operator's wishes go on."""

from __future__ import annotations

import pytest

from llumnix.core.events import (
    AbortRequests,
    AddInstances,
    AdoptedInstance,
    AdoptInstances,
    Beat,
    DispatchEntry,
    Drain,
    DrainOrder,
    InstanceDied,
    InstanceReady,
    InstanceState,
    PublishTable,
    Record,
    Reported,
    ScaleTo,
    StartInstance,
    StopInstance,
    Tick,
    Uncordon,
)
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import SchedulerSettings

from .reports import report

S = InstanceState


def known(instance: str, uid: int, *, serves: bool = True, cordoned: bool = False) -> AdoptedInstance:
    return AdoptedInstance(instance, uid, 1 + uid % 2, "n0", 1000 + uid, serves, cordoned)


@pytest.fixture
def scheduler() -> Scheduler:
    """i0 serves, i1 is cordoned, i2 did not serve yet; table 7 was the last."""
    made = Scheduler(SchedulerSettings(first_uid=6, first_instance=3, restart_backoff_s=1.0))
    left = (known("i0", 3), known("i1", 4, cordoned=True), known("i2", 5, serves=False))
    actions = made.handle(AdoptInstances(left, table_version=7), 100.0)
    entries = (DispatchEntry(3, "i0", True), DispatchEntry(4, "i1", False, refuge=True))
    assert [a for a in actions if not isinstance(a, Record)] == [PublishTable(8, entries)]
    assert {(a.kind, a.target) for a in actions if isinstance(a, Record)} == {
        ("instance.adopted", "i0"),
        ("instance.adopted", "i1"),
        ("instance.adopted", "i2"),
    }
    return made


def test_what_serves_goes_on_as_it_was(scheduler: Scheduler) -> None:
    views = {view.instance: view for view in scheduler.instances()}
    assert (views["i0"].state, views["i1"].state) == (S.RUNNING, S.CORDONED)
    assert (views["i0"].uid, views["i0"].pid, views["i0"].incarnation) == (3, 1003, 2)
    assert views["i0"].failures == 0
    scheduler.check_integrity()
    scheduler.handle(Uncordon("i1"), 101.0)
    assert scheduler.table().entries[1].open


def test_what_did_not_serve_is_started_again_as_the_next_incarnation(scheduler: Scheduler) -> None:
    starts = [a for a in scheduler.handle(Tick(), 100.25) if isinstance(a, StartInstance)]
    assert [(a.instance, a.uid, a.incarnation) for a in starts] == [("i2", 6, 3)]
    scheduler.check_integrity()


def test_numbers_go_on(scheduler: Scheduler) -> None:
    (start,) = [a for a in scheduler.handle(AddInstances(1), 100.0) if isinstance(a, StartInstance)]
    assert (start.instance, start.uid) == ("i3", 6)


def test_one_that_died_meanwhile_is_restarted_after_its_back_off(scheduler: Scheduler) -> None:
    actions = scheduler.handle(InstanceDied(3, "it ended meanwhile"), 100.0)
    assert PublishTable(9, (DispatchEntry(4, "i1", False, refuge=True),)) in actions
    assert scheduler.instance("i0").restart_at == 101.0
    scheduler.check_integrity()


def test_one_that_is_silent_from_the_start_counts_as_hung() -> None:
    scheduler = Scheduler(SchedulerSettings(first_uid=9, heartbeat_timeout_s=2.0))
    scheduler.handle(AdoptInstances((known("i0", 3), known("i1", 4)), 1), 0.0)
    for quarter in range(20):
        scheduler.handle(Beat(4, 0.0, None, 0.5), quarter / 4)
        scheduler.handle(Tick(), quarter / 4)
    assert scheduler.instance("i0").state is S.STOPPING
    assert scheduler.instance("i1").state is S.RUNNING


def test_a_drain_can_be_ordered_again(scheduler: Scheduler) -> None:
    scheduler.handle(Drain("i1", 30.0, remove=True), 100.0)
    view = scheduler.instance("i1")
    assert (view.state, view.removing, view.drain_deadline) == (S.DRAINING, True, 130.0)


def adopted_drain(order: DrainOrder) -> Scheduler:
    left = AdoptedInstance("i0", 3, 1, "n0", 1003, serves=True, cordoned=True, drain=order)
    scheduler = Scheduler(SchedulerSettings(first_uid=6, first_instance=3))
    scheduler.handle(AdoptInstances((left,), 7), 100.0)
    scheduler.check_integrity()
    assert scheduler.instance("i0").state is S.DRAINING
    return scheduler


def test_a_drain_that_aborts_what_is_left_still_does() -> None:
    scheduler = adopted_drain(DrainOrder(90.0, 30.0, remove=False, abort_left=True))
    assert scheduler.instance("i0").drain_deadline == 120.0
    scheduler.handle(Beat(3, 0.0, None, 0.5), 119.0)
    scheduler.handle(Reported(report(uid=3, running=1)), 119.0)
    actions = scheduler.handle(Tick(), 120.0)
    assert [a.uid for a in actions if isinstance(a, AbortRequests)] == [3]


def test_a_termination_notice_stays_in_force() -> None:
    scheduler = adopted_drain(DrainOrder(90.0, 600.0, remove=True, not_after=120.0))
    assert scheduler.instance("i0").drain_deadline == 120.0
    scheduler.handle(Drain("i0", 600.0), 101.0)
    view = scheduler.instance("i0")
    assert (view.removing, view.drain_deadline) == (True, 120.0)


def test_a_restart_still_replaces_the_process_and_opens_the_instance_again() -> None:
    scheduler = adopted_drain(DrainOrder(90.0, 30.0, remove=False, restart=True, was_cordoned=False))
    actions = scheduler.handle(Reported(report(uid=3)), 102.0)
    assert [a.uid for a in actions if isinstance(a, StopInstance)] == [3]
    scheduler.handle(InstanceDied(3, "stopped"), 103.0)
    scheduler.handle(Tick(), 103.25)
    scheduler.handle(InstanceReady(6), 110.0)
    assert scheduler.instance("i0").state is S.RUNNING


def test_what_is_drained_as_surplus_is_still_taken_back_when_it_is_needed() -> None:
    scheduler = adopted_drain(DrainOrder(90.0, float("inf"), remove=True, is_surplus=True))
    scheduler.handle(ScaleTo(2), 101.0)
    assert scheduler.instance("i0").state is S.RUNNING


def test_a_drain_whose_time_ran_out_meanwhile_waits_for_a_report_to_judge_it() -> None:
    scheduler = adopted_drain(DrainOrder(10.0, 30.0, remove=False))
    scheduler.handle(Tick(), 101.0)
    scheduler.handle(Reported(report(uid=3)), 101.5)
    assert scheduler.instance("i0").state is S.DRAINED


def test_other_settings_are_taken_on_at_once(scheduler: Scheduler) -> None:
    scheduler.reconfigure(SchedulerSettings(restart_backoff_s=20.0))
    scheduler.handle(InstanceDied(3, "it ended"), 100.0)
    assert scheduler.instance("i0").restart_at == 120.0
