"""Life of one instance's processes: start, readiness, death, restart with back-off, stop and kill."""

from __future__ import annotations

from llumnix.core.events import (
    Action,
    AdoptedInstance,
    InstancePlaced,
    InstanceState,
    KillInstance,
    StartInstance,
    StopInstance,
)
from llumnix.core.member import Incarnation, Member
from llumnix.core.settings import SchedulerSettings

S = InstanceState


def added(
    instance: str, uid: int, reason: str, not_on: tuple[str, ...], now: float
) -> tuple[Member, list[Action]]:
    """A new instance, with its first process asked for."""
    run = Incarnation(uid, 1, not_on=not_on)
    member = Member(instance, run, S.PENDING, f"{reason}, waits for a place", now)
    start = StartInstance(instance, uid, 1, reason, not_on)
    return member, [start, member.record("instance.added", member.reason)]


def adopted(known: AdoptedInstance, now: float) -> tuple[Member, list[Action]]:
    """An instance that a former scheduler had started: it goes on, or is started again at the next tick."""
    run = Incarnation(known.uid, known.incarnation, known.node, known.pid, placed_at=now)
    member = Member(known.instance, run, S.RESTARTING, "", now, cordoned=known.cordoned)
    member.cordoned_with_node = known.cordoned_with_node
    if known.serves:
        run.ready_at = run.beat_at = now
        run.closed_at = now if known.cordoned else None
        state = S.CORDONED if known.cordoned else S.RUNNING
        member.move(state, f"taken over: process {known.pid} went on serving", now)
    else:
        _leave_node(member)
        member.restart_at = now
        member.reason = "taken over, but it did not serve: starts again"
    return member, [member.record("instance.adopted", member.reason)]


def _leave_node(member: Member) -> None:
    """Its process is gone, and with it what was wished of the node; the next one may be elsewhere."""
    if member.cordoned_with_node:
        member.cordoned = member.cordoned_with_node = False


def restart(member: Member, uid: int, not_on: tuple[str, ...], now: float) -> list[Action]:
    """Ask for the next process of an instance that died."""
    row = f", number {member.failures} in a row" if member.failures else ""
    reason = f"restart {member.run.number}{row}, waits for a place"
    member.last_node = member.run.node or member.last_node
    member.run = Incarnation(uid, member.run.number + 1, not_on=not_on)
    member.restart_at = None
    member.move(S.PENDING, reason, now)
    start = StartInstance(member.instance, uid, member.run.number, reason, not_on)
    return [start, member.record("instance.restart", reason)]


def placed(member: Member, event: InstancePlaced, now: float) -> list[Action]:
    """Ray found a place; the start timeout runs from here."""
    run = member.run
    if run.placed_at is not None:
        return []
    run.node, run.pid, run.placed_at = event.node, event.pid, now
    if member.state is not S.PENDING:
        return []
    message = f"process {event.pid} on {event.node}, engine loads"
    member.move(S.STARTING, message, now)
    return [member.record("instance.placed", message)]


def ready(member: Member, now: float) -> list[Action]:
    """The engine is loaded: serve, or stay cordoned where an operator wished so."""
    if member.state not in (S.PENDING, S.STARTING):
        return []
    waited_s = now - member.since
    member.run.ready_at = member.run.beat_at = now
    member.run.beat = None  # what the loop's heartbeat said while the engine loaded is no sign of a hang
    message = f"ready after {waited_s:.1f} s"
    if member.cordoned:
        member.run.closed_at = now
        message += ", stays cordoned"
    member.move(S.CORDONED if member.cordoned else S.RUNNING, message, now)
    return [member.record("instance.ready", message)]


def died(member: Member, reason: str, settings: SchedulerSettings, now: float) -> list[Action]:
    """The process is gone: done if it was to be removed, else restart it after a back-off, or give up."""
    cause = member.run.condemned or reason
    removing = member.removing or (member.drain is not None and member.drain.remove)
    if member.drain is not None and member.drain.restart:
        member.cordoned = member.drain.was_cordoned
    member.drain = None
    _leave_node(member)
    if removing:
        return removed(member, cause, now)
    if member.run.to_be_replaced:
        member.restart_at = now
        member.move(S.RESTARTING, cause, now)
        return [member.record("instance.stopped", cause)]
    forgive_failures(member, settings, now)
    member.failures += 1
    if member.failures > settings.restart_limit:
        message = (
            f"died {member.failures} times in a row, restarts are limited to {settings.restart_limit} "
            f"(restart_limit); last: {cause}"
        )
        member.move(S.FAILED, message, now)
        return [
            member.record("instance.died", cause, "error"),
            member.record("instance.failed", message, "error"),
        ]
    delay_s = backoff_s(member.failures, settings)
    member.restart_at = now + delay_s
    member.move(S.RESTARTING, f"{cause}; restarts in {delay_s:.1f} s", now)
    return [member.record("instance.died", member.reason, "error")]


def forgive_failures(member: Member, settings: SchedulerSettings, now: float) -> None:
    """An instance that has served for long enough starts its count of failures anew."""
    ready_at = member.run.ready_at
    if ready_at is not None and now - ready_at >= settings.healthy_after_s:
        member.failures = 0


def backoff_s(failures: int, settings: SchedulerSettings) -> float:
    """Wait before a restart: doubles with each failure in a row, up to a bound."""
    # The exponent is bounded too: a float overflows long before an operator's restart_limit does.
    return min(settings.restart_backoff_s * 2.0 ** min(failures - 1, 64), settings.restart_backoff_max_s)


def removed(member: Member, reason: str, now: float) -> list[Action]:
    """Nothing of the instance is left; it stays in the view for a while."""
    member.removing = True
    member.drain = member.restart_at = None
    member.move(S.DEAD, reason, now)
    return [member.record("instance.removed", member.reason)]


def stop(member: Member, reason: str, settings: SchedulerSettings, now: float) -> list[Action]:
    """Remove the instance: end its process in good order, or at once if that takes too long."""
    member.removing = True
    return _end(member, reason, settings, now)


def replace(member: Member, reason: str, settings: SchedulerSettings, now: float) -> list[Action]:
    """End the instance's process likewise, and start another one in its place."""
    member.run.to_be_replaced = True
    return _end(member, reason, settings, now)


def _end(member: Member, reason: str, settings: SchedulerSettings, now: float) -> list[Action]:
    member.drain = None
    member.run.condemned = reason
    member.run.kill_at = now + settings.stop_timeout_s
    member.move(S.STOPPING, reason, now)
    stopping = StopInstance(member.instance, member.run.uid, reason)
    return [stopping, member.record("instance.stopping", reason)]


def kill(member: Member, kind: str, reason: str, settings: SchedulerSettings, now: float) -> list[Action]:
    """End the process at once; what follows its death depends on `member.removing`."""
    if member.drain is not None and member.drain.remove:
        member.removing = True
    member.drain = None
    member.run.condemned = reason
    member.run.kill_at = now + settings.kill_retry_s
    member.move(S.STOPPING, reason, now)
    killing = KillInstance(member.instance, member.run.uid, reason)
    is_wanted = member.removing or member.run.to_be_replaced
    return [killing, member.record(kind, reason, "info" if is_wanted else "error")]


def place_again(member: Member, reason: str, settings: SchedulerSettings, now: float) -> list[Action]:
    """End a process that does not serve yet, and start it where Ray places it now: no failure."""
    member.run.to_be_replaced = True
    return kill(member, "instance.place_again", f"is placed again: {reason}", settings, now)


def kill_if_overdue(member: Member, settings: SchedulerSettings, now: float) -> list[Action]:
    """Kill what was told to end and still lives, again and again: only its death frees what it holds."""
    run = member.run
    if member.state is not S.STOPPING or run.kill_at is None or now < run.kill_at:
        return []
    run.kill_at = now + settings.kill_retry_s
    reason = f"still alive {now - member.since:.1f} s after: {member.reason}"
    killing = KillInstance(member.instance, run.uid, reason)
    return [killing, member.record("instance.killed", reason, "warning")]


def kill_if_start_overdue(member: Member, settings: SchedulerSettings, now: float) -> list[Action]:
    """A process that does not get ready in time counts as a failed start."""
    placed_at = member.run.placed_at
    if member.state is not S.STARTING or placed_at is None or now - placed_at < settings.start_timeout_s:
        return []
    reason = f"not ready {now - placed_at:.1f} s after it was placed (limit {settings.start_timeout_s:g} s)"
    return kill(member, "instance.start_timeout", reason, settings, now)
