"""Drains: closing an instance, judging when it is empty, and giving up when the time is over."""

from __future__ import annotations

import math
from dataclasses import replace

from llumnix.core import lifecycle
from llumnix.core.events import AbortRequests, Action, Drain, DrainOrder, InstanceState
from llumnix.core.member import EMPTYING, Member, blockers
from llumnix.core.settings import SchedulerSettings

S = InstanceState

ABORT_AGAIN_S = 1.0
"""Requests are aborted by the last table of them, which is a little older."""


def begin(
    member: Member,
    command: Drain,
    settings: SchedulerSettings,
    now: float,
    *,
    is_surplus: bool = False,
    not_after: float = math.inf,
) -> list[Action]:
    """Close the instance and wait for it to be empty; a drain under way gets the new time and aim.

    It stays one that removes the instance, and one that ends before its machine is taken away.
    """
    before = member.drain
    remove = command.remove or (before is not None and before.remove)
    if before is not None:
        not_after = min(not_after, before.not_after)
    member.drain = order = DrainOrder(
        now,
        command.timeout_s,
        remove,
        is_surplus,
        restart=command.restart and not remove,
        was_cordoned=member.cordoned,
        abort_left=command.abort_left,
        not_after=not_after,
    )
    member.cordoned = True
    if member.state not in EMPTYING or member.run.closed_at is None:
        member.run.closed_at = now  # also of a cordoned one: it may have been a refuge so far
    aim = ", then it is removed" if remove else ", then it is restarted" if command.restart else ""
    limit = f" within {order.deadline - now:g} s" if math.isfinite(order.deadline) else ""
    message = f"drain{limit}{aim}"
    member.move(S.DRAINING, message, now)
    return [member.record("drain.started", message), *advance(member, settings, now)]


def resume(member: Member, order: DrainOrder, settings: SchedulerSettings, now: float) -> None:
    """Go on with a drain that a former scheduler began; it lasts at least until a report can judge it."""
    soonest = now + 2 * settings.settle_s
    until = max(order.deadline, soonest)
    member.drain = replace(order, timeout_s=until - order.started_at, not_after=max(order.not_after, soonest))
    member.move(S.DRAINING, f"{member.reason}, its drain goes on", now)


def advance(member: Member, settings: SchedulerSettings, now: float) -> list[Action]:
    """Judge a drain by the latest report: done, out of time, or (drained before) no longer true."""
    drain = member.drain
    if drain is None:
        return []
    if member.state is S.DRAINED:
        return _reopen_if_loaded(member, now)
    if _is_empty(member, settings):
        return _finish(member, drain, settings, now)
    if now >= drain.deadline:
        return _give_up(member, drain, settings, now)
    return []


def _is_empty(member: Member, settings: SchedulerSettings) -> bool:
    """True once a report says so that came when requests on the way had their time to arrive."""
    run = member.run
    if run.report is None or run.report_at is None or run.closed_at is None:
        return False
    return run.report_at >= run.closed_at + settings.settle_s and not blockers(member)


def _finish(member: Member, drain: DrainOrder, settings: SchedulerSettings, now: float) -> list[Action]:
    message = f"empty after {now - drain.started_at:.1f} s"
    member.move(S.DRAINED, message, now)
    done = member.record("drain.done", message)
    if drain.remove:
        return [done, *lifecycle.stop(member, f"removed, {message}", settings, now)]
    if drain.restart:
        member.cordoned = drain.was_cordoned
        return [done, *lifecycle.replace(member, f"restarts, {message}", settings, now)]
    return [done]


def _give_up(member: Member, drain: DrainOrder, settings: SchedulerSettings, now: float) -> list[Action]:
    left = (
        "; ".join(blockers(member)) or f"no report since it was closed and {settings.settle_s:g} s had passed"
    )
    message = f"not empty after {now - drain.started_at:.1f} s: {left}"
    timeout = member.record("drain.timeout", message, "warning")
    if drain.remove:
        return [timeout, *lifecycle.stop(member, f"removed, {message}", settings, now)]
    if drain.abort_left:
        member.drain = replace(drain, abort_again_at=now + ABORT_AGAIN_S)
        abort = AbortRequests(member.run.uid, f"{member.instance} was drained: {message}")
        return [timeout, abort] if drain.abort_again_at is None else [abort]
    member.drain = None
    if not drain.restart or drain.was_cordoned or member.cordoned_with_node:
        member.move(S.CORDONED, message, now)
        return [timeout]
    # A restart that did not come about leaves things as they were; the next one starts from there.
    member.cordoned, member.run.closed_at = False, None
    member.move(S.RUNNING, message, now)
    return [timeout]


def _reopen_if_loaded(member: Member, now: float) -> list[Action]:
    """`drained` says that it is safe to remove the instance: take it back when a late request turns up."""
    late = blockers(member)
    if not late:
        return []
    message = f"no longer empty: {'; '.join(late)}"
    member.move(S.DRAINING, message, now)
    return [member.record("drain.undone", message, "warning")]
