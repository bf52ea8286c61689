"""An instance as the scheduler keeps it, and the frozen view of it that the admin API is given."""

from __future__ import annotations

from dataclasses import dataclass, field

from llumnix.core.events import Beat, DrainOrder, InstanceState, Record
from llumnix.core.load import InstanceReport, freeness, headroom_in_blocks
from llumnix.core.settings import SchedulerSettings

S = InstanceState

SERVING = frozenset({S.RUNNING, S.CORDONED, S.DRAINING, S.DRAINED})
"""States of an instance whose engine is loaded and is meant to go on."""

LIVE = SERVING | {S.PENDING, S.STARTING, S.STOPPING}
"""States in which a process exists, or was asked for."""

EMPTYING = frozenset({S.DRAINING, S.DRAINED})


@dataclass(slots=True)
class Incarnation:
    """One process of an instance, from its start to its death. Times are the scheduler's `now`."""

    uid: int
    number: int
    node: str | None = None
    pid: int | None = None
    placed_at: float | None = None
    ready_at: float | None = None
    report: InstanceReport | None = None
    report_at: float | None = None
    beat: Beat | None = None
    beat_at: float | None = None
    """When the last beat came, or since when one has been due."""
    closed_at: float | None = None
    """Since when the table has said that nothing new goes there."""
    condemned: str | None = None
    """Why we end it, when it is not its own doing."""
    kill_at: float | None = None
    """When it is killed (again) if it still lives."""
    not_on: tuple[str, ...] = ()
    """Nodes that it is not placed on."""
    to_be_replaced: bool = False
    """Its end was asked for, so that another process takes its place: no failure."""


@dataclass(slots=True)
class Member:
    """One instance through all its incarnations.

    Invariants: `drain` is set exactly in DRAINING and DRAINED; `restart_at` exactly in RESTARTING; `cordoned`
    holds in CORDONED, DRAINING and DRAINED and not in RUNNING; `cordoned_with_node` only with `cordoned`;
    `removing` only in STOPPING and DEAD.
    """

    instance: str
    run: Incarnation
    state: InstanceState
    reason: str
    since: float
    failures: int = 0
    """Deaths in a row since it last served well."""
    restart_at: float | None = None
    cordoned: bool = False
    """An operator's wish; outlives a restart."""
    cordoned_with_node: bool = False
    """The wish was about its node only: it ends with the process that is there."""
    drain: DrainOrder | None = None
    removing: bool = False
    last_node: str | None = None
    """Where the process before this one was."""

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @property
    def is_known_to_servers(self) -> bool:
        """True while API servers may have requests there."""
        return self.is_live and self.run.ready_at is not None

    def move(self, state: InstanceState, reason: str, now: float) -> None:
        """Enter a state; every change goes through here."""
        self.state, self.reason, self.since = state, reason, now

    def record(self, kind: str, message: str, severity: str = "info") -> Record:
        return Record(kind, severity, self.instance, message)


@dataclass(frozen=True, slots=True)
class InstanceView:
    """An instance as the admin API shows it; a copy that does not change. Times are the scheduler's `now`."""

    instance: str
    uid: int
    incarnation: int
    state: InstanceState
    reason: str
    since: float
    ready_at: float | None
    node: str | None
    pid: int | None
    restarts: int
    failures: int
    report: InstanceReport | None
    report_at: float | None
    freeness: float | None
    """Blocks per running request; -inf while draining, None before the first report."""
    drain_deadline: float | None
    restart_at: float | None
    removing: bool
    """It goes away for good: once drained, or already on its way."""
    cordoned: bool
    """An operator's wish, whatever state it is in."""
    blockers: tuple[str, ...] = field(default=())
    """What a drain still waits for, or what was there when its time was up."""
    drain: DrainOrder | None = None
    cordoned_with_node: bool = False
    last_node: str | None = None
    """Where its process is, or before it has a place where the one before it was."""


def view_of(member: Member, settings: SchedulerSettings) -> InstanceView:
    """A frozen copy of what there is to know of an instance."""
    run, drain = member.run, member.drain
    return InstanceView(
        instance=member.instance,
        uid=run.uid,
        incarnation=run.number,
        state=member.state,
        reason=member.reason,
        since=member.since,
        ready_at=run.ready_at,
        node=run.node,
        pid=run.pid,
        restarts=run.number - 1,
        failures=member.failures,
        report=run.report,
        report_at=run.report_at,
        freeness=_freeness(member, settings),
        drain_deadline=drain.deadline if drain else None,
        restart_at=member.restart_at,
        removing=member.removing or (drain is not None and drain.remove),
        cordoned=member.cordoned,
        blockers=blockers(member) if member.state in (S.DRAINING, S.CORDONED) else (),
        drain=drain,
        cordoned_with_node=member.cordoned_with_node,
        last_node=run.node or member.last_node,
    )


def blockers(member: Member) -> tuple[str, ...]:
    """What keeps the instance from being empty, as last reported."""
    report = member.run.report
    if report is None:
        return ("no report yet",)
    parts = []
    if report.running or report.waiting:
        parts.append(f"{report.running} running, {report.waiting} waiting requests")
        parts += [f"{count} stayed: {reason}" for reason, count in report.refusals.items()]
    if report.arriving:
        # They were on their way when it was closed: once here they have to leave again.
        parts.append(f"{report.arriving} on their way there")
    return tuple(parts)


def _freeness(member: Member, settings: SchedulerSettings) -> float | None:
    report = member.run.report
    if report is None or not member.is_live:
        return None
    headroom_blocks = headroom_in_blocks(settings.headroom, report.block_size, report.total_blocks)
    draining = member.state in EMPTYING or member.state is S.STOPPING
    return freeness(report, headroom_blocks, draining=draining)
