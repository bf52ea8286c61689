"""Which request leaves next: what a source's llumlet decides under an order of the global scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from llumnix.core.load import (
    InstanceReport,
    free_blocks_after_moves,
    freeness_after_moves,
)


class Queued(StrEnum):
    """What an order says of requests that wait at the source."""

    STAY = "stay"
    GO_TOO = "go_too"
    GO_ALONE = "go_alone"
    """Only they go, in queue order: they have nothing to copy, and the target has room for them."""


@dataclass(frozen=True, slots=True)
class MoveGoal:
    """How far an order to move goes, and what of the target must stay free.

    The source counts what is leaving already as gone. Its goal is reached once its freeness and its free
    blocks are both at least this much.
    """

    until_freeness: float = math.inf
    until_free_blocks: int = 0
    headroom_blocks: Mapping[int, int] = field(default_factory=dict)
    """Of the source, by engine priority."""
    target_room_blocks: float = math.inf
    """Free blocks of the target less headroom, when the order was given."""
    target_running: int = 0
    target_freeness: float = -math.inf
    """What the target's freeness must not fall below by a move."""
    queued: Queued = Queued.STAY
    must_pay: bool = False
    """Move nobody whose copy would take longer than the source's free blocks last."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live request of the source that could leave: it is not leaving yet and was not refused just now."""

    request_id: str
    priority: int
    """Engine priority: the lower, the more important."""
    num_tokens: int
    num_blocks: int
    """Blocks it holds; of one that waits, those it needs."""
    is_running: bool = True


@dataclass(frozen=True, slots=True)
class Sent:
    """What has begun to leave under the present order."""

    num_requests: int = 0
    num_blocks: int = 0

    def plus(self, victim: Candidate) -> Sent:
        return Sent(self.num_requests + 1, self.num_blocks + victim.num_blocks)


def next_victim(
    candidates: Iterable[Candidate], report: InstanceReport, goal: MoveGoal, sent: Sent
) -> Candidate | None:
    """The request to move next, or None where the goal is reached or nobody fits the target.

    `report` is what the source would report at this moment; candidates that wait come in queue order. Lower
    priority goes first, then the shorter (section 4.4); to make room in blocks, the one that is just enough.
    Unless all have to go, one that runs goes only when none of lower priority could be asked instead.
    """
    allowed = sorted((c for c in candidates if _may_go(c, goal)), key=_order(report, goal))
    if math.isfinite(goal.until_freeness):
        least = max((c.priority for c in allowed if c.is_running), default=0)
        allowed = [c for c in allowed if c.priority == least or not c.is_running]
    return next(
        (
            candidate
            for candidate in allowed
            if not _is_reached(report, goal, candidate.priority)
            and _fits(candidate, goal, sent)
            and not (goal.must_pay and candidate.is_running and _copy_is_late(candidate, report))
        ),
        None,
    )


def _may_go(candidate: Candidate, goal: MoveGoal) -> bool:
    match goal.queued:
        case Queued.STAY:
            return candidate.is_running
        case Queued.GO_ALONE:
            return not candidate.is_running
        case Queued.GO_TOO:
            return True


def _order(report: InstanceReport, goal: MoveGoal) -> Callable[[Candidate], tuple[float, ...]]:
    if goal.queued is Queued.GO_ALONE:
        return lambda c: (c.priority,)  # these gain by it; `candidates` come in queue order
    missing = goal.until_free_blocks - free_blocks_after_moves(report)
    if missing <= 0:
        return lambda c: (-c.priority, c.num_tokens)
    # The smallest that suffices; where none does, the largest, so that few have to move.
    return lambda c: (-c.priority, c.num_blocks < missing, abs(c.num_blocks - missing))


def _is_reached(report: InstanceReport, goal: MoveGoal, priority: int) -> bool:
    """Whether a request of this priority may stay: none goes for the sake of its own class's headroom."""
    headroom = {p: blocks for p, blocks in goal.headroom_blocks.items() if p < priority}
    return (
        freeness_after_moves(report, headroom) >= goal.until_freeness
        and free_blocks_after_moves(report) >= goal.until_free_blocks
    )


def _fits(candidate: Candidate, goal: MoveGoal, sent: Sent) -> bool:
    then = sent.plus(candidate)
    # Infinite room is for moves that have to be: the target itself refuses what it cannot take.
    room_blocks = goal.target_room_blocks - then.num_blocks
    return (
        room_blocks >= 0 and room_blocks / (goal.target_running + then.num_requests) >= goal.target_freeness
    )


def _copy_is_late(candidate: Candidate, report: InstanceReport) -> bool:
    """Whether the source runs out of blocks before the copy is through: it would preempt all the same."""
    if not report.copy_blocks_per_s or not report.running:
        return False
    free_tokens = free_blocks_after_moves(report) * report.block_size
    lasts_s = free_tokens / report.running * report.step_ms / 1e3
    return candidate.num_blocks / report.copy_blocks_per_s > lasts_s
