"""Cordons and drains of nodes: what is placed, what is there, and what an uncordon undoes."""

from __future__ import annotations

import pytest

from llumnix.core.events import (
    Action,
    AddInstances,
    AdoptInstances,
    CommandRefused,
    Cordon,
    CordonNode,
    DrainNode,
    InstanceDied,
    InstancePlaced,
    InstanceReady,
    InstanceState,
    KillInstance,
    NodeGone,
    Reported,
    StartInstance,
    Tick,
    UncordonNode,
)
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import SchedulerSettings

from .reports import report

S = InstanceState
SETTINGS = SchedulerSettings(restart_limit=1, restart_backoff_s=1.0, settle_s=0.5)


@pytest.fixture
def scheduler() -> Scheduler:
    """i0 serves on n0, i1 on n1, i2 starts on n1."""
    made = Scheduler(SETTINGS)
    made.handle(AddInstances(3), 0.0)
    for uid, node in ((1, "n0"), (2, "n1"), (3, "n1")):
        made.handle(InstancePlaced(uid, node, 1000 + uid), 0.0)
    made.handle(InstanceReady(1), 0.0)
    made.handle(InstanceReady(2), 0.0)
    return made


def states(scheduler: Scheduler) -> list[InstanceState]:
    scheduler.check_integrity()
    return [view.state for view in scheduler.instances()]


def starts(actions: list[Action]) -> list[tuple[str, tuple[str, ...]]]:
    return [(a.instance, a.not_on) for a in actions if isinstance(a, StartInstance)]


def kills(actions: list[Action]) -> list[int]:
    return [a.uid for a in actions if isinstance(a, KillInstance)]


def test_a_cordon_covers_what_is_there_and_what_would_come(scheduler: Scheduler) -> None:
    scheduler.handle(CordonNode("n1"), 1.0)
    assert states(scheduler) == [S.RUNNING, S.CORDONED, S.STARTING]
    scheduler.handle(InstanceReady(3), 1.0)
    assert states(scheduler) == [S.RUNNING, S.CORDONED, S.CORDONED]
    assert starts(scheduler.handle(AddInstances(1), 2.0)) == [("i3", ("n1",))]
    assert scheduler.cordoned_nodes() == ("n1",)


def test_what_dies_on_a_cordoned_node_starts_elsewhere_and_serves(scheduler: Scheduler) -> None:
    scheduler.handle(CordonNode("n1"), 1.0)
    scheduler.handle(InstanceDied(2, "killed"), 1.0)
    assert starts(scheduler.handle(Tick(), 2.0)) == [("i1", ("n1",))]
    scheduler.handle(InstancePlaced(4, "n0", 1), 2.0)
    scheduler.handle(InstanceReady(4), 2.0)
    assert scheduler.instance("i1").state is S.RUNNING


def test_an_operators_cordon_of_the_instance_itself_outlives_that(scheduler: Scheduler) -> None:
    scheduler.handle(CordonNode("n1"), 1.0)
    scheduler.handle(Cordon("i1"), 1.0)
    scheduler.handle(InstanceDied(2, "killed"), 1.0)
    scheduler.handle(Tick(), 2.0)
    scheduler.handle(InstancePlaced(4, "n0", 1), 2.0)
    scheduler.handle(InstanceReady(4), 2.0)
    assert scheduler.instance("i1").state is S.CORDONED


def test_a_place_that_was_found_before_the_cordon_is_given_up_and_is_no_failure(scheduler: Scheduler) -> None:
    scheduler.handle(AddInstances(1), 1.0)
    scheduler.handle(CordonNode("n1"), 1.0)
    assert kills(scheduler.handle(InstancePlaced(4, "n1", 1), 1.5)) == [4]
    scheduler.handle(InstanceDied(4, "killed"), 1.5)
    assert starts(scheduler.handle(Tick(), 1.75)) == [("i3", ("n1",))]
    assert scheduler.instance("i3").failures == 0
    states(scheduler)


def test_a_drain_empties_what_can_be_drained_and_starts_the_rest_elsewhere(scheduler: Scheduler) -> None:
    scheduler.handle(InstanceReady(3), 0.0)
    scheduler.handle(AddInstances(1), 0.0)
    scheduler.handle(InstancePlaced(4, "n1", 1), 0.0)
    for uid, again in ((3, 5), (5, 6)):  # i2 ends up failed
        scheduler.handle(InstanceDied(uid, "killed"), 0.0)
        if uid == 3:
            scheduler.handle(Tick(), 1.0)
            scheduler.handle(InstancePlaced(again, "n1", 1), 1.0)
    assert states(scheduler) == [S.RUNNING, S.RUNNING, S.FAILED, S.STARTING]
    actions = scheduler.handle(DrainNode("n1", 30.0, abort_left=True), 2.0)
    assert states(scheduler) == [S.RUNNING, S.DRAINING, S.FAILED, S.STOPPING]
    assert kills(actions) == [4]
    drain = scheduler.instance("i1").drain
    assert drain is not None and (drain.timeout_s, drain.abort_left) == (30.0, True)
    scheduler.handle(Reported(report(uid=2)), 3.0)
    scheduler.handle(InstanceDied(4, "killed"), 3.0)
    assert starts(scheduler.handle(Tick(), 3.25)) == [("i3", ("n1",))]
    assert states(scheduler) == [S.RUNNING, S.DRAINED, S.FAILED, S.PENDING]


def test_an_uncordon_undoes_it_for_those_too_that_wait_for_a_place(scheduler: Scheduler) -> None:
    scheduler.handle(DrainNode("n1", 30.0), 1.0)
    scheduler.handle(InstanceDied(3, "killed"), 1.0)
    assert starts(scheduler.handle(Tick(), 1.25)) == [("i2", ("n1",))]
    assert kills(scheduler.handle(UncordonNode("n1"), 2.0)) == [4]
    assert states(scheduler) == [S.RUNNING, S.RUNNING, S.STOPPING]
    scheduler.handle(InstanceDied(4, "killed"), 2.0)
    assert starts(scheduler.handle(Tick(), 2.25)) == [("i2", ())]


def test_a_drain_with_a_bad_timeout_changes_nothing(scheduler: Scheduler) -> None:
    with pytest.raises(CommandRefused, match="0 s or more, not -1"):
        scheduler.handle(DrainNode("n1", -1.0), 1.0)
    assert scheduler.cordoned_nodes() == () and states(scheduler)[1] is S.RUNNING


def test_dead_nodes_are_forgotten_and_cordons_taken_over() -> None:
    scheduler = Scheduler(SETTINGS)
    scheduler.handle(AdoptInstances((), 3, ("n1", "n2")), 0.0)
    scheduler.handle(NodeGone("n1"), 0.0)
    assert starts(scheduler.handle(AddInstances(1), 0.0)) == [("i0", ("n2",))]
