"""Commands on one instance, of operators and of scaling: what each does in which state, or why not."""

from __future__ import annotations

import math

from llumnix.core import drains, lifecycle
from llumnix.core.events import Action, CommandRefused, Drain, InstanceState, TerminationNotice
from llumnix.core.member import EMPTYING, SERVING, Member
from llumnix.core.settings import SchedulerSettings

S = InstanceState

_GONE = frozenset({S.STOPPING, S.DEAD})


def cordon(member: Member, now: float) -> list[Action]:
    """Send nothing new there; one that is not up yet comes up cordoned."""
    if member.state in _GONE or member.state is S.FAILED:
        raise _refusal(member, "it cannot be cordoned")
    member.cordoned_with_node = False
    if member.cordoned:
        return []
    member.cordoned = True
    if member.state is not S.RUNNING:
        return [member.record("instance.cordoned", f"is {member.state}, will come up cordoned")]
    member.run.closed_at = now
    member.move(S.CORDONED, "cordoned by an operator", now)
    return [member.record("instance.cordoned", "takes no new requests")]


def uncordon(member: Member, now: float) -> list[Action]:
    """Serve again; ends a drain, also one that was to remove the instance."""
    if member.state in _GONE or member.state is S.FAILED:
        raise _refusal(member, "it cannot be uncordoned")
    if not member.cordoned:
        return []
    member.cordoned = member.cordoned_with_node = False
    was = member.state
    if was not in SERVING:
        return [member.record("instance.uncordoned", f"is {was}, will take requests once it is up")]
    member.drain = member.run.closed_at = None
    member.move(S.RUNNING, f"uncordoned by an operator, was {was}", now)
    ended = ", its drain ends" if was in EMPTYING else ""
    return [member.record("instance.uncordoned", f"takes requests again{ended}")]


def keep(member: Member, reason: str, now: float) -> list[Action]:
    """Take back an instance that was only drained because it was not needed."""
    member.cordoned = member.cordoned_with_node = False
    member.drain = member.run.closed_at = None
    member.move(S.RUNNING, f"needed again: {reason}", now)
    return [member.record("instance.uncordoned", member.reason)]


def remove_surplus(member: Member, reason: str, settings: SchedulerSettings, now: float) -> list[Action]:
    """Drain an instance that is not needed, however long it takes, and remove it."""
    if member.state not in SERVING:
        return _remove(member, settings, now)
    command = Drain(member.instance, math.inf, remove=True)
    return drains.begin(member, command, settings, now, is_surplus=True)


def give_up(
    member: Member, notice: TerminationNotice, settings: SchedulerSettings, now: float
) -> list[Action]:
    """Move everything off an instance whose machine goes away at a known time."""
    if not 0 <= notice.deadline_s < math.inf:
        raise CommandRefused(f"a termination notice needs a deadline of 0 s or more, not {notice.deadline_s}")
    # What is left then is resumed elsewhere: better from an engine that ended in good order than from none.
    margin_s = min(settings.notice_margin_s, notice.deadline_s / 4)
    command = Drain(notice.instance, notice.deadline_s - margin_s, remove=True)
    message = f"its machine is taken away in {notice.deadline_s:g} s"
    actions = drain(member, command, settings, now, not_after=now + command.timeout_s)
    return [member.record("instance.termination_notice", message, "warning"), *actions]


def drain(
    member: Member, command: Drain, settings: SchedulerSettings, now: float, *, not_after: float = math.inf
) -> list[Action]:
    """Empty the instance, or remove it; what holds no requests is removed at once."""
    check_timeout(command.timeout_s)
    if member.state in SERVING:
        if member.state is S.DRAINED and not (command.remove or command.restart):
            return []
        return drains.begin(member, command, settings, now, not_after=not_after)
    if not command.remove:
        raise _refusal(member, "there is nothing to drain")
    return _remove(member, settings, now)


def check_timeout(timeout_s: float) -> None:
    """Raises CommandRefused for what a drain cannot have."""
    if not timeout_s >= 0:  # NaN is not; infinity is no limit
        raise CommandRefused(f"a drain needs a timeout of 0 s or more, not {timeout_s}")


def _remove(member: Member, settings: SchedulerSettings, now: float) -> list[Action]:
    if member.state is S.DEAD:
        raise _refusal(member, "it is removed already")
    if member.state is S.STOPPING:
        member.removing = True
        return [member.record("instance.stopping", f"will not be restarted; {member.reason}")]
    if not member.is_live:
        return lifecycle.removed(member, f"removed while {member.state} ({member.reason})", now)
    reason = f"removed while {member.state}"
    member.removing = True
    return lifecycle.kill(member, "instance.stopping", reason, settings, now)


def _refusal(member: Member, consequence: str) -> CommandRefused:
    return CommandRefused(f"{member.instance} is {member.state} ({member.reason}): {consequence}")
