"""The global scheduler: events in, actions out. It decides; llumnix.cluster and llumnix.sim carry out."""

from __future__ import annotations

from collections import Counter
from typing import assert_never

from llumnix.core import commands, drains, lifecycle, scaling
from llumnix.core.events import (
    Action,
    AddInstances,
    AdoptInstances,
    Beat,
    CommandRefused,
    Cordon,
    CordonNode,
    DispatchEntry,
    Drain,
    DrainNode,
    Event,
    HeldRequests,
    InstanceDied,
    InstancePlaced,
    InstanceReady,
    InstanceState,
    NodeGone,
    PublishTable,
    Record,
    Reported,
    ScaleTo,
    TerminationNotice,
    Tick,
    Uncordon,
    UncordonNode,
)
from llumnix.core.health import hang_reason
from llumnix.core.load import InstanceReport
from llumnix.core.member import SERVING, InstanceView, Member, view_of
from llumnix.core.moves import Mover
from llumnix.core.node_cordons import NodeCordons
from llumnix.core.roster import Roster
from llumnix.core.scaling import Autoscaler
from llumnix.core.settings import SchedulerSettings


class Scheduler:
    """Decides for all instances of a cluster.

    `handle` is the only way in and the views the only way out. It does no I/O and keeps no reference to
    anything outside; the same events at the same times give the same actions. Events of incarnations that are
    dead or unknown are ignored, doubled ones too. Not thread-safe.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._roster = Roster(first_uid=settings.first_uid, first_instance=settings.first_instance)
        self._entries: tuple[DispatchEntry, ...] = ()
        self._version = 0
        self._last_tick_at: float | None = None
        self._held: dict[int, HeldRequests] = {}
        self._nodes = NodeCordons()
        self._mover = Mover()
        self._autoscaler = Autoscaler()

    @property
    def settings(self) -> SchedulerSettings:
        return self._settings

    def reconfigure(self, settings: SchedulerSettings) -> None:
        """Go on with other settings; those that number instances take no effect any more."""
        self._settings = settings

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event and say what to do, in this order.

        Raises CommandRefused or UnknownInstance for a command that cannot be carried out; it changes nothing.
        """
        actions = self._decide(event, now)
        if actions or not isinstance(event, Reported | Beat):  # the many that change no state
            actions += self._publish_if_changed()
        return actions

    def _decide(self, event: Event, now: float) -> list[Action]:
        match event:
            case Tick():
                return self._tick(now)
            case Reported(report):
                return self._reported(report, now)
            case Beat():
                return self._beat(event, now)
            case InstancePlaced(uid):
                member = self._roster.live(uid)
                return self._nodes.placed(member, event, self._settings, now) if member else []
            case InstanceReady(uid):
                member = self._roster.live(uid)
                return lifecycle.ready(member, now) if member else []
            case InstanceDied(uid, reason):
                member = self._roster.died(uid)
                return lifecycle.died(member, reason, self._settings, now) if member else []
            case AddInstances(count):
                return self._add(count, now)
            case AdoptInstances():
                return self._adopt(event, now)
            case Cordon(instance):
                return commands.cordon(self._roster.named(instance), now)
            case Uncordon(instance):
                return commands.uncordon(self._roster.named(instance), now)
            case Drain(instance):
                return commands.drain(self._roster.named(instance), event, self._settings, now)
            case CordonNode(node):
                return self._nodes.cordon(node, list(self._roster), now)
            case UncordonNode(node):
                return self._nodes.uncordon(node, list(self._roster), self._settings, now)
            case DrainNode():
                return self._nodes.drain(event, list(self._roster), self._settings, now)
            case NodeGone(node):
                self._nodes.forget(node)
                return []
            case ScaleTo(count):
                return self._scale(scaling.scale_to(count, list(self._roster), self._settings.scaling), now)
            case TerminationNotice(instance):
                return self._give_up(self._roster.named(instance), event, now)
            case HeldRequests(api_server):
                self._held[api_server] = event
                return []
            case _:
                assert_never(event)

    def _tick(self, now: float) -> list[Action]:
        actions = self._forgive_own_silence(now)
        for member in self._roster:
            if member.state in SERVING:
                lifecycle.forgive_failures(member, self._settings, now)
            actions += lifecycle.kill_if_start_overdue(member, self._settings, now)
            actions += self._kill_if_hung(member, now)
            actions += lifecycle.kill_if_overdue(member, self._settings, now)
            actions += drains.advance(member, self._settings, now)
            actions += self._restart_if_due(member, now)
            self._forget_if_long_dead(member, now)
        members, held = list(self._roster), [queue for queue in self._held.values() if queue.num_requests]
        actions += self._scale(self._autoscaler.look_if_due(members, held, self._settings, now), now)
        return actions + self._mover.round_if_due(members, held, self._settings, now)

    def _forgive_own_silence(self, now: float) -> list[Action]:
        """Where the daemon itself stood still, heartbeats wait unread: the silence is its own."""
        gap_s = now - self._last_tick_at if self._last_tick_at is not None else 0.0
        self._last_tick_at = now
        if gap_s <= self._settings.heartbeat_timeout_s / 2:
            return []
        for member in self._roster:
            if member.run.beat_at is not None:
                member.run.beat_at = min(member.run.beat_at + gap_s, now)
        message = f"the scheduler was not called for {gap_s:.1f} s; heartbeats are given that much longer"
        return [Record("scheduler.stalled", "warning", "scheduler", message)]

    def _kill_if_hung(self, member: Member, now: float) -> list[Action]:
        beat_at = member.run.beat_at
        if member.state not in SERVING or beat_at is None:
            return []
        reason = hang_reason(
            member.run.beat,
            now - beat_at,
            heartbeat_timeout_s=self._settings.heartbeat_timeout_s,
            step_timeout_s=self._settings.step_timeout_s,
        )
        if reason is None:
            return []
        return lifecycle.kill(member, "instance.hung", f"hung: {reason}", self._settings, now)

    def _restart_if_due(self, member: Member, now: float) -> list[Action]:
        if member.restart_at is None or now < member.restart_at:
            return []
        actions = lifecycle.restart(member, self._roster.new_uid(), self._nodes.names(), now)
        self._roster.enter(member)
        return actions

    def _forget_if_long_dead(self, member: Member, now: float) -> None:
        if member.state is InstanceState.DEAD and now - member.since >= self._settings.dead_kept_s:
            self._roster.forget(member)

    def _reported(self, report: InstanceReport, now: float) -> list[Action]:
        member = self._roster.live(report.uid)
        if member is None or (member.run.report is not None and report.seq <= member.run.report.seq):
            return []
        member.run.report, member.run.report_at = report, now
        return drains.advance(member, self._settings, now)

    def _beat(self, beat: Beat, now: float) -> list[Action]:
        member = self._roster.live(beat.uid)
        if member is not None:
            member.run.beat, member.run.beat_at = beat, now
        return []

    def _add(self, count: int, now: float) -> list[Action]:
        if count < 1:
            raise CommandRefused(f"the number of instances to add must be 1 or more, not {count}")
        scaling.refuse_beyond_bounds(count, self._roster, self._settings.scaling)
        return self._start(count, "added", now)

    def _start(self, count: int, reason: str, now: float) -> list[Action]:
        actions: list[Action] = []
        for _ in range(count):
            instance, uid = self._roster.new_instance(), self._roster.new_uid()
            member, started = lifecycle.added(instance, uid, reason, self._nodes.names(), now)
            self._roster.enter(member)
            actions += started
        return actions

    def _scale(self, step: scaling.Step | None, now: float) -> list[Action]:
        match step:
            case None:
                return []
            case scaling.Grow(count, reason):
                surplus = [m for m in self._roster if m.drain is not None and m.drain.is_surplus][:count]
                actions: list[Action] = [Record("scale.up", "info", "scheduler", reason)]
                for member in surplus:
                    actions += commands.keep(member, reason, now)
                return actions + self._start(count - len(surplus), reason, now)
            case scaling.Shrink(instances, reason):
                actions = [Record("scale.down", "info", "scheduler", reason)]
                for instance in instances:
                    member = self._roster.named(instance)
                    actions += commands.remove_surplus(member, reason, self._settings, now)
                return actions

    def _give_up(self, member: Member, notice: TerminationNotice, now: float) -> list[Action]:
        """Drain in time what its machine's owner takes away, and replace it where too few are left."""
        actions = commands.give_up(member, notice, self._settings, now)
        return actions + self._scale(scaling.replacement(list(self._roster), self._settings.scaling), now)

    def _adopt(self, left: AdoptInstances, now: float) -> list[Action]:
        self._version = left.table_version
        self._nodes.adopt(left.cordoned_nodes)
        actions: list[Action] = []
        for known in left.instances:
            member, records = lifecycle.adopted(known, now)
            if known.serves and known.drain is not None:
                drains.resume(member, known.drain, self._settings, now)
            self._roster.enter(member)
            if not member.is_live:
                self._roster.died(known.uid)
            actions += records
        return actions

    def _publish_if_changed(self) -> list[Action]:
        entries = tuple(
            DispatchEntry(
                member.run.uid,
                member.instance,
                open=member.state is InstanceState.RUNNING,
                refuge=member.state is InstanceState.CORDONED,
            )
            for member in self._roster
            if member.is_known_to_servers
        )
        if entries == self._entries:
            return []
        self._entries = entries
        self._version += 1
        return [PublishTable(self._version, entries)]

    def instances(self) -> list[InstanceView]:
        """All instances, oldest first, as frozen copies; removed ones for a while too."""
        return [view_of(member, self._settings) for member in self._roster]

    def instance(self, instance: str) -> InstanceView:
        """One instance; raises UnknownInstance."""
        return view_of(self._roster.named(instance), self._settings)

    def cordoned_nodes(self) -> tuple[str, ...]:
        """Nodes that no instance is placed on."""
        return self._nodes.names()

    def counts(self) -> dict[InstanceState, int]:
        """How many instances are in each state, all states named."""
        present = Counter(member.state for member in self._roster)
        return {state: present[state] for state in InstanceState}

    def table(self) -> PublishTable:
        """The table as last published (version 0: never); for an API server that starts."""
        return PublishTable(self._version, self._entries)

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        self._roster.check_integrity()
        for m in self._roster:
            emptying = m.state in (InstanceState.DRAINING, InstanceState.DRAINED)
            assert (m.drain is not None) == emptying, m
            assert (m.restart_at is not None) == (m.state is InstanceState.RESTARTING), m
            assert m.cordoned or not m.cordoned_with_node, m
            assert not m.removing or m.state in (InstanceState.STOPPING, InstanceState.DEAD), m
            if m.state in SERVING:
                closed = m.state is not InstanceState.RUNNING
                assert m.cordoned == closed == (m.run.closed_at is not None), m
