"""core.Scheduler under any sequence of events, early, late, doubled or of the dead: what must always hold."""

from __future__ import annotations

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llumnix.core.events import (
    Action,
    AddInstances,
    Beat,
    CommandRefused,
    Cordon,
    CordonNode,
    Drain,
    DrainNode,
    Event,
    HeldRequests,
    InstanceDied,
    InstancePlaced,
    InstanceReady,
    InstanceState,
    KillInstance,
    MoveRequests,
    NodeGone,
    PublishTable,
    Record,
    Reported,
    ScaleTo,
    StartInstance,
    StopInstance,
    TerminationNotice,
    Tick,
    Uncordon,
    UncordonNode,
    UnknownInstance,
)
from llumnix.core.load import Headroom
from llumnix.core.member import SERVING
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import ScalingSettings, SchedulerSettings

from .reports import report

S = InstanceState

SETTINGS = SchedulerSettings(
    start_timeout_s=20,
    restart_limit=3,
    restart_backoff_s=1,
    restart_backoff_max_s=3,
    healthy_after_s=30,
    heartbeat_timeout_s=4,
    dead_kept_s=10,
    stop_timeout_s=8,
    headroom={-10: Headroom(target_load_tokens=480)},
    scaling=ScalingSettings(enabled=True, min_instances=1, max_instances=6, hold_s=2, interval_s=1),
)
AT_REST = {S.RUNNING, S.CORDONED, S.DRAINED, S.FAILED, S.DEAD}

uids = st.integers(1, 12)
names = st.integers(0, 6).map(lambda number: f"i{number}")
nodes = st.sampled_from(("n0", "n1"))


class SchedulerMachine(RuleBasedStateMachine):
    """A cluster manager that delivers whatever it likes, and keeps books of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(SETTINGS)
        self.now = 0.0
        self.seq = 0
        self.instance_of: dict[int, str] = {}
        self.alive: dict[str, int] = {}
        self.ready_at: dict[int, float] = {}
        self.died_at: dict[str, float] = {}
        self.deaths_in_a_row: dict[str, int] = {}
        self.placed_again: set[int] = set()
        self.version = 0
        self.published: dict[int, bool] = {}
        self.ids: set[str] = set()

    def tell(self, event: Event) -> list[Action]:
        before = (self.scheduler.instances(), self.scheduler.table())
        try:
            actions = self.scheduler.handle(event, self.now)
        except (CommandRefused, UnknownInstance) as refusal:
            assert str(refusal)
            assert (self.scheduler.instances(), self.scheduler.table()) == before
            return []
        for action in actions:
            self.enact(action)
        return actions

    def enact(self, action: Action) -> None:
        match action:
            case StartInstance(instance, uid, incarnation, reason, not_on):
                assert not_on == self.scheduler.cordoned_nodes()
                assert reason and uid not in self.instance_of, "a uid is used twice"
                assert instance not in self.alive, "two live incarnations"
                assert (incarnation == 1) == (instance not in self.ids)
                if instance in self.died_at:
                    waited_s = self.now - self.died_at[instance]
                    failures = self.deaths_in_a_row[instance]
                    assert waited_s >= min(2.0 ** (failures - 1), SETTINGS.restart_backoff_max_s)
                    assert failures <= SETTINGS.restart_limit
                self.ids.add(instance)
                self.instance_of[uid] = instance
                self.alive[instance] = uid
            case StopInstance(instance, uid, reason) | KillInstance(instance, uid, reason):
                assert reason and self.alive.get(instance) == uid, "ends what does not live"
                if reason.startswith("is placed again"):
                    self.placed_again.add(uid)
            case PublishTable(version, entries):
                assert version == self.version + 1
                self.version = version
                self.published = {entry.uid: entry.open for entry in entries}
                assert all(self.instance_of[entry.uid] == entry.instance for entry in entries)
            case MoveRequests(source, target, reason, for_s, goal):
                states = {view.uid: view.state for view in self.scheduler.instances()}
                assert reason and for_s > 0 and source != target
                assert states[target] is S.RUNNING, "requests are moved where none is taken"
                assert states[source] in (S.RUNNING, S.CORDONED, S.DRAINING)
                assert goal.until_free_blocks >= 0
            case Record(kind, severity, target, message):
                assert kind and target and message and severity in ("info", "warning", "error")

    def kill_process(self, uid: int) -> None:
        """The process ends and its death is told."""
        instance = self.instance_of[uid]
        if self.alive.get(instance) == uid and uid in self.placed_again:  # no failure, no back-off
            del self.alive[instance]
            self.died_at.pop(instance, None)
        elif self.alive.get(instance) == uid:
            served_s = self.now - self.ready_at.get(uid, self.now)
            served_well = served_s >= SETTINGS.healthy_after_s
            self.deaths_in_a_row[instance] = 1 if served_well else self.deaths_in_a_row.get(instance, 0) + 1
            del self.alive[instance]
            self.died_at[instance] = self.now
        self.tell(InstanceDied(uid, "killed by signal 9"))

    def load_engine(self, uid: int) -> None:
        if any(v.uid == uid and v.state in (S.PENDING, S.STARTING) for v in self.scheduler.instances()):
            self.ready_at[uid] = self.now
        self.tell(InstanceReady(uid))

    # ---- what may happen ----

    @precondition(lambda self: len(self.ids) < 7)
    @rule(count=st.integers(0, 3))
    def add(self, count: int) -> None:
        self.tell(AddInstances(count))

    @rule(uid=uids, node=nodes)
    def placed(self, uid: int, node: str) -> None:
        self.tell(InstancePlaced(uid, node, 1000 + uid))

    @rule(uid=uids)
    def becomes_ready(self, uid: int) -> None:
        self.load_engine(uid)

    @rule(uid=uids)
    def dies(self, uid: int) -> None:
        if uid in self.instance_of:
            self.kill_process(uid)
        else:
            assert self.tell(InstanceDied(uid, "never heard of")) == []

    @rule(
        uid=uids,
        running=st.integers(0, 3),
        waiting=st.integers(0, 1),
        used_blocks=st.sampled_from((0, 20, 95, 100)),
        fresh=st.booleans(),
    )
    def reports(self, uid: int, running: int, waiting: int, used_blocks: int, fresh: bool) -> None:
        self.seq += fresh
        load = report(
            uid=uid,
            seq=self.seq,
            running=running,
            waiting=waiting,
            used_blocks=used_blocks if running else 0,
            queued_blocks=50 * waiting,
            head_blocks=50 * waiting,
        )
        self.tell(Reported(load))

    @rule(
        uid=uids, loop_age_s=st.sampled_from((0.0, 3.9, 4.1)), step_age_s=st.sampled_from((None, 3.0, 400.0))
    )
    def beats(self, uid: int, loop_age_s: float, step_age_s: float | None) -> None:
        assert self.tell(Beat(uid, loop_age_s, step_age_s, cpu_share=0.5)) == []

    @rule(name=names)
    def cordons(self, name: str) -> None:
        self.tell(Cordon(name))

    @rule(name=names)
    def uncordons(self, name: str) -> None:
        self.tell(Uncordon(name))

    @rule(
        name=names,
        timeout_s=st.sampled_from((-1.0, 0.0, 2.0, 30.0, float("inf"), float("nan"))),
        remove=st.booleans(),
    )
    def drains(self, name: str, timeout_s: float, remove: bool) -> None:
        self.tell(Drain(name, timeout_s, remove))

    @rule(node=nodes, kind=st.sampled_from((CordonNode, UncordonNode, NodeGone)))
    def treats_node(self, node: str, kind: type[CordonNode | UncordonNode | NodeGone]) -> None:
        self.tell(kind(node))

    @rule(node=nodes, timeout_s=st.sampled_from((-1.0, 0.0, 2.0, 30.0)))
    def drains_node(self, node: str, timeout_s: float) -> None:
        self.tell(DrainNode(node, timeout_s))

    @rule(count=st.integers(0, 8))
    def scales(self, count: int) -> None:
        self.tell(ScaleTo(count))

    @rule(name=names, deadline_s=st.sampled_from((-1.0, 0.0, 3.0, 30.0, float("inf"))))
    def gets_notice(self, name: str, deadline_s: float) -> None:
        self.tell(TerminationNotice(name, deadline_s))

    @rule(api_server=st.integers(0, 1), count=st.integers(0, 2), head_tokens=st.integers(1, 1600))
    def holds(self, api_server: int, count: int, head_tokens: int) -> None:
        assert self.tell(HeldRequests(api_server, count, count * head_tokens, head_tokens, 0)) == []

    @rule(seconds=st.sampled_from((0.25, 1.0, 3.0, 12.0)), beating=st.booleans())
    def time_passes(self, seconds: float, beating: bool) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.25
            for view in self.scheduler.instances() if beating else []:
                self.tell(Beat(view.uid, 0.0, None, 0.5))
            self.tell(Tick())

    # ---- what must hold ----

    @invariant()
    def own_invariants_hold(self) -> None:
        self.scheduler.check_integrity()

    @invariant()
    def no_id_is_used_twice_or_shared(self) -> None:
        views = self.scheduler.instances()
        assert len({v.instance for v in views}) == len({v.uid for v in views}) == len(views)
        assert {v.instance for v in views} <= self.ids

    @invariant()
    def the_table_has_live_instances_only_and_the_running_ones_open(self) -> None:
        assert self.published.keys() <= set(self.alive.values())
        running = {v.uid for v in self.scheduler.instances() if v.state is S.RUNNING}
        assert {uid for uid, is_open in self.published.items() if is_open} == running
        serving = {v.uid for v in self.scheduler.instances() if v.state in SERVING}
        assert serving <= self.published.keys()

    @invariant()
    def views_agree_with_the_processes(self) -> None:
        gone = {S.RESTARTING, S.FAILED, S.DEAD}
        for view in self.scheduler.instances():
            assert (self.alive.get(view.instance) == view.uid) == (view.state not in gone)
            assert view.reason
            assert view.restart_at is None or view.restart_at - view.since <= SETTINGS.restart_backoff_max_s

    def teardown(self) -> None:
        """With a co-operative world every instance comes to rest."""
        for _ in range(2000):
            for view in self.scheduler.instances():
                if view.state is S.PENDING:
                    self.tell(InstancePlaced(view.uid, "n9", 1))
                elif view.state is S.STARTING:
                    self.load_engine(view.uid)
                elif view.state is S.STOPPING:
                    self.kill_process(view.uid)
                else:
                    self.seq += 1
                    self.tell(Beat(view.uid, 0.0, None, 0.5))
                    self.tell(Reported(report(uid=view.uid, seq=self.seq)))
            self.now += 0.25
            self.tell(Tick())
            if all(view.state in AT_REST for view in self.scheduler.instances()):
                return
        raise AssertionError(f"not at rest: {self.scheduler.instances()}")


SchedulerMachine.TestCase.settings = hypothesis_settings(
    max_examples=120, stateful_step_count=40, deadline=None
)
TestSchedulerUnderAnyEvents = SchedulerMachine.TestCase
