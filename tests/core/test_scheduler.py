"""core.Scheduler, one behaviour at a time; whole stories are in scenarios/."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llumnix.core.events import (
    AddInstances,
    Beat,
    Cordon,
    Drain,
    Event,
    InstanceDied,
    InstancePlaced,
    InstanceReady,
    InstanceState,
    Reported,
    StartInstance,
    Tick,
    Uncordon,
    UnknownInstance,
)
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import SchedulerSettings

from .reports import report

S = InstanceState


def serving(num: int = 1, **changes: float) -> Scheduler:
    """A scheduler with `num` running instances, uids 1..num, at time 0."""
    made = Scheduler(SchedulerSettings(**changes))  # type: ignore[arg-type]
    made.handle(AddInstances(num), 0.0)
    for uid in range(1, num + 1):
        made.handle(InstancePlaced(uid, "n0", uid), 0.0)
        made.handle(InstanceReady(uid), 0.0)
    return made


def test_backoff_doubles_up_to_its_bound_and_the_limit_is_respected() -> None:
    scheduler = Scheduler(SchedulerSettings(restart_limit=9, restart_backoff_s=1))
    scheduler.handle(AddInstances(1), 0.0)
    now, waits = 0.0, []
    while True:
        scheduler.handle(InstanceDied(scheduler.instances()[0].uid, "no GPU"), now)
        view = scheduler.instances()[0]
        if view.restart_at is None:
            break
        waits.append(view.restart_at - now)
        now = view.restart_at
        scheduler.handle(Tick(), now)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert view.state is S.FAILED and "no GPU" in view.reason and view.restarts == 9


def test_where_the_last_process_was_is_known_until_the_next_has_a_place() -> None:
    scheduler = serving(1, restart_backoff_s=1)
    scheduler.handle(InstanceDied(1, "no GPU"), 10.0)
    scheduler.handle(Tick(), 11.0)
    view = scheduler.instances()[0]
    assert (view.state, view.node, view.last_node) == (S.PENDING, None, "n0")
    scheduler.handle(InstancePlaced(view.uid, "n1", 9), 11.0)
    assert scheduler.instances()[0].last_node == "n1"


def test_a_limit_of_zero_means_no_restart_and_a_huge_one_does_not_overflow() -> None:
    never = Scheduler(SchedulerSettings(restart_limit=0))
    never.handle(AddInstances(1), 0.0)
    never.handle(InstanceDied(1, "x"), 0.0)
    assert never.instances()[0].state is S.FAILED
    always = Scheduler(SchedulerSettings(restart_limit=10**6, restart_backoff_max_s=1))
    always.handle(AddInstances(1), 0.0)
    for step in range(1, 2000):
        always.handle(InstanceDied(always.instances()[0].uid, "x"), float(step))
        always.handle(Tick(), step + 1.0)
    assert always.instances()[0].restarts == 1999


@pytest.mark.parametrize("command", [Cordon, Uncordon, lambda name: Drain(name, 1.0)])
def test_a_command_for_an_unknown_instance_is_named_as_such(command: Callable[[str], Event]) -> None:
    with pytest.raises(UnknownInstance, match="no instance is called 'i7'"):
        serving().handle(command("i7"), 1.0)


def test_views_and_counts_show_load_and_freeness() -> None:
    scheduler = serving(2)
    scheduler.handle(Reported(report(uid=1, running=2, used_blocks=20)), 1.0)
    first, second = scheduler.instances()
    assert (first.freeness, first.report_at, second.freeness) == (40, 1.0, None)
    scheduler.handle(Drain("i0", 60), 2.0)
    assert scheduler.instance("i0").freeness == -float("inf")
    assert scheduler.instance("i0").drain_deadline == 62
    counts = scheduler.counts()
    assert (counts[S.RUNNING], counts[S.DRAINING], sum(counts.values())) == (1, 1, 2)


def test_a_report_that_was_overtaken_by_a_later_one_is_ignored() -> None:
    scheduler = serving()
    for seq, running in ((5, 3), (4, 0), (5, 0)):
        scheduler.handle(Reported(report(uid=1, seq=seq, running=running)), 1.0 + seq)
    view = scheduler.instance("i0")
    assert view.report is not None and (view.report.running, view.report_at) == (3, 6.0)


def test_numbers_continue_where_a_former_scheduler_stopped() -> None:
    scheduler = Scheduler(SchedulerSettings(first_uid=40, first_instance=7))
    start = scheduler.handle(AddInstances(1), 0.0)[0]
    assert isinstance(start, StartInstance) and (start.uid, start.instance) == (40, "i7")


def test_heartbeats_of_the_time_when_the_engine_loaded_are_no_sign_of_a_hang() -> None:
    scheduler = Scheduler(SchedulerSettings())
    scheduler.handle(AddInstances(1), 0.0)
    scheduler.handle(InstancePlaced(1, "n0", 1), 0.0)
    scheduler.handle(Beat(1, loop_age_s=50, step_age_s=None, cpu_share=1), 50.0)
    scheduler.handle(InstanceReady(1), 50.1)
    assert scheduler.handle(Tick(), 50.2) == []


def test_a_drain_tells_what_it_waits_for_and_why_it_stays() -> None:
    scheduler = serving(2)
    scheduler.handle(Drain("i0", 60), 0.0)
    refusals = {"the target has no free run slot": 2, "a pooling request": 1}
    scheduler.handle(Reported(report(running=3, waiting=1, arriving=1, refusals=refusals)), 1.0)
    assert scheduler.instance("i0").blockers == (
        "3 running, 1 waiting requests",
        "2 stayed: the target has no free run slot",
        "1 stayed: a pooling request",
        "1 on their way there",
    )


def test_the_same_events_give_the_same_actions() -> None:
    events: list[tuple[Event, float]] = [
        (AddInstances(3), 0.0),
        (InstanceReady(2), 1.0),
        (InstanceDied(2, "x"), 2.0),
    ]
    events += [(Tick(), 0.25 * step) for step in range(8, 40)]
    one, other = Scheduler(SchedulerSettings()), Scheduler(SchedulerSettings())
    assert [one.handle(*event) for event in events] == [other.handle(*event) for event in events]
