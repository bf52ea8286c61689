"""How many instances there are: by load, as an operator says, and in place of what is taken away."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llumnix.core.events import CommandRefused, HeldRequests, InstanceState
from llumnix.core.load import demand_blocks
from llumnix.core.member import Member
from llumnix.core.settings import ScalingSettings, SchedulerSettings

S = InstanceState

WANTED = frozenset({S.PENDING, S.STARTING, S.RUNNING, S.CORDONED, S.STOPPING, S.RESTARTING})
"""States of an instance that serves or is meant to, unless it is removed: STOPPING comes back then."""


_BETWEEN_PROCESSES = frozenset({S.STOPPING, S.RESTARTING})


@dataclass(frozen=True, slots=True)
class Grow:
    """Have `count` more instances; one that is drained as surplus is taken back first."""

    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Shrink:
    """Remove these instances."""

    instances: tuple[str, ...]
    reason: str


Step = Grow | Shrink


def is_wanted(member: Member) -> bool:
    going = member.removing or (member.drain is not None and member.drain.remove)
    return not going and (member.state in WANTED or member.drain is not None)


class Autoscaler:
    """Keeps the mean freeness between two bounds. Invariant: at most one of the two `since` is set."""

    def __init__(self) -> None:
        self._next_look_at = -math.inf
        self._low_since: float | None = None
        self._high_since: float | None = None

    def look_if_due(
        self,
        members: Sequence[Member],
        held: Iterable[HeldRequests],
        settings: SchedulerSettings,
        now: float,
    ) -> Step | None:
        """What to change now, at most one instance at a time but for those that are below the minimum."""
        scaling = settings.scaling
        if not scaling.enabled or now < self._next_look_at:
            return None
        self._next_look_at = now + scaling.interval_s
        wanted = [m for m in members if is_wanted(m)]
        below = replacement(members, scaling)
        if below is not None:
            return below
        mean = mean_freeness(members, held)
        if mean is None:
            self._low_since = self._high_since = None
            return None
        self._note(mean, scaling, now)
        return self._step(mean, wanted, scaling, now)

    def _note(self, mean: float, scaling: ScalingSettings, now: float) -> None:
        low, high = mean < scaling.scale_up_freeness, mean > scaling.scale_down_freeness
        self._low_since = (now if self._low_since is None else self._low_since) if low else None
        self._high_since = (now if self._high_since is None else self._high_since) if high else None

    def _step(
        self, mean: float, wanted: Sequence[Member], scaling: ScalingSettings, now: float
    ) -> Step | None:
        if self._low_since is not None and now - self._low_since >= scaling.hold_s:
            # One that has no place yet would only be followed by another without.
            if len(wanted) >= scaling.max_instances or any(m.state is S.PENDING for m in wanted):
                return None
            since, self._low_since = self._low_since, now
            return Grow(1, _why(mean, "<", scaling.scale_up_freeness, now - since))
        if self._high_since is not None and now - self._high_since >= scaling.hold_s:
            surplus = first_to_go(wanted)
            num_ready = sum(m.state is S.RUNNING for m in wanted)
            if len(wanted) <= scaling.min_instances or surplus is None:
                return None
            if surplus.state is S.RUNNING and num_ready <= scaling.min_instances:
                return None
            since, self._high_since = self._high_since, now
            reason = _why(mean, ">", scaling.scale_down_freeness, now - since)
            return Shrink((surplus.instance,), f"{reason}; {_load_of(surplus)}")
        return None


def _why(mean: float, sign: str, bound: float, for_s: float) -> str:
    return f"mean freeness {mean:.1f} {sign} {bound:g} for {for_s:.0f} s"


def _load_of(member: Member) -> str:
    report = member.run.report
    if member.state is not S.RUNNING or report is None:
        return f"{member.instance} is {member.state}"
    return f"{member.instance} runs the fewest requests ({report.running})"


def mean_freeness(members: Iterable[Member], held: Iterable[HeldRequests]) -> float | None:
    """Average freeness of normal priority, which has no headroom, over the instances that take requests.

    Requests held at API servers count as if they were spread evenly. None before anybody has reported.
    """
    reports = [m.run.report for m in members if m.state is S.RUNNING and m.run.report is not None]
    if not reports:
        return None
    num_held_tokens = sum(queue.num_tokens for queue in held)
    held_blocks = demand_blocks(num_held_tokens, reports[0].block_size) if num_held_tokens else 0
    total = 0.0
    for report in reports:
        free_blocks = report.total_blocks - report.used_blocks - report.head_blocks
        total += (free_blocks - held_blocks / len(reports)) / max(report.running, 1)
    return total / len(reports)


def first_to_go(wanted: Iterable[Member]) -> Member | None:
    """Who is given up first: what does not serve yet, then the one with the fewest running requests."""
    return min((m for m in wanted if m.state not in _BETWEEN_PROCESSES), key=_cost_to_remove, default=None)


def _cost_to_remove(member: Member) -> tuple[int, int, int]:
    report = member.run.report
    stage = {S.PENDING: 0, S.STARTING: 1}.get(member.state, 2)
    return stage, report.running if report else 0, -member.run.uid


def replacement(members: Sequence[Member], scaling: ScalingSettings) -> Step | None:
    """What is missing to the minimum."""
    num_wanted = sum(map(is_wanted, members))
    if num_wanted >= scaling.min_instances:
        return None
    reason = f"instances left: {num_wanted}, the minimum is {scaling.min_instances}"
    return Grow(scaling.min_instances - num_wanted, reason)


def refuse_beyond_bounds(count: int, members: Iterable[Member], scaling: ScalingSettings) -> None:
    """Raises CommandRefused if so many more instances would be too many."""
    num_wanted = sum(map(is_wanted, members))
    if num_wanted + count > scaling.max_instances:
        raise CommandRefused(
            f"{count} more than {num_wanted} instances: "
            f"expected at most {scaling.max_instances} (instances.max)"
        )


def scale_to(count: int, members: Sequence[Member], scaling: ScalingSettings) -> Step | None:
    """An operator's number of instances; raises CommandRefused outside the bounds."""
    if not scaling.min_instances <= count <= scaling.max_instances:
        bounds = f"{scaling.min_instances} to {scaling.max_instances} (instances.min, instances.max)"
        raise CommandRefused(f"{count} instances: expected {bounds}")
    wanted = [m for m in members if is_wanted(m)]
    reason = f"scaled to {count} by an operator, was {len(wanted)}"
    if len(wanted) < count:
        return Grow(count - len(wanted), reason)
    if len(wanted) > count:
        surplus = sorted(wanted, key=_cost_to_remove)[: len(wanted) - count]
        return Shrink(tuple(m.instance for m in surplus), reason)
    return None
