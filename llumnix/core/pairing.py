"""Who gives requests to whom: the pairings of the rescheduling policies, one round at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llumnix.core.events import HeldRequests, InstanceState
from llumnix.core.load import (
    InstanceReport,
    batch_after_moves,
    demand_blocks,
    free_blocks_after_moves,
    freeness_after_moves,
    headroom_in_blocks,
)
from llumnix.core.member import Member
from llumnix.core.settings import SchedulerSettings
from llumnix.core.victims import MoveGoal, Queued


@dataclass(frozen=True, slots=True)
class Standing:
    """A loaded instance as a round sees it. Invariant: `freeness` is -inf exactly when it drains."""

    uid: int
    instance: str
    report: InstanceReport
    headroom_blocks: dict[int, int]
    freeness: float
    """Once all migrations under way are done."""
    is_target: bool
    """It may be given requests: it is running, and not paused."""

    @property
    def free_blocks(self) -> int:
        return free_blocks_after_moves(self.report)

    @property
    def batch(self) -> int:
        return batch_after_moves(self.report)

    def is_short_of_headroom_only(self, threshold: float) -> bool:
        """Its freeness would not be below the threshold without any headroom."""
        return freeness_after_moves(self.report, {}) >= threshold

    @property
    def room_blocks(self) -> float:
        """What it can be given: free blocks, less the headroom of the requests that run there."""
        return self.freeness * max(self.batch, 1)


@dataclass(frozen=True, slots=True)
class Pair:
    """A source, a target, how far the source goes, and the numbers that say why."""

    source: Standing
    target: Standing
    goal: MoveGoal
    reason: str


def standings(members: Iterable[Member], settings: SchedulerSettings) -> list[Standing]:
    """Everybody who can take part in a round: loaded, and reported."""
    return [
        _standing(member, member.run.report, settings)
        for member in members
        if member.run.report is not None
        and member.state in (InstanceState.RUNNING, InstanceState.CORDONED, InstanceState.DRAINING)
    ]


def _standing(member: Member, report: InstanceReport, settings: SchedulerSettings) -> Standing:
    headroom_blocks = headroom_in_blocks(settings.headroom, report.block_size, report.total_blocks)
    drains = member.state is InstanceState.DRAINING
    return Standing(
        uid=member.run.uid,
        instance=member.instance,
        report=report,
        headroom_blocks=headroom_blocks,
        freeness=-math.inf if drains else freeness_after_moves(report, headroom_blocks),
        is_target=member.state is InstanceState.RUNNING and not report.paused,
    )


def lowest_with_highest(
    sources: Iterable[Standing], targets: Iterable[Standing]
) -> list[tuple[Standing, Standing]]:
    """The least free source with the freest target, the next with the next, as far as both reach."""
    by_freeness = sorted(sources, key=lambda s: (s.freeness, s.uid))
    freest = sorted(targets, key=lambda t: (-t.freeness, t.uid))
    return list(zip(by_freeness, freest, strict=False))


# ---- drains: every policy -------------------------------------------------------------------------------


def empty_draining(everybody: Sequence[Standing]) -> list[Pair]:
    """The paper's fake request of a terminating instance: the freest ones take what it has.

    However full they are: it has to go, and a target that cannot take a request refuses it.
    """
    sources = [s for s in everybody if s.freeness == -math.inf and (s.report.running or s.report.waiting)]
    pairs = []
    for turn, source in enumerate(sources):
        targets = _targets_of_drain(source, everybody)
        if targets:
            target = targets[turn % len(targets)]  # several that drain at once do not all crowd one target
            free = f"{target.instance} is free ({target.freeness:.1f} blocks per request)"
            goal = MoveGoal(queued=Queued.GO_TOO)
            pairs.append(Pair(source, target, goal, f"{source.instance} is drained; {free}"))
    return pairs


def _targets_of_drain(source: Standing, everybody: Sequence[Standing]) -> list[Standing]:
    """The freest first that a request of middle size fits; if it fits none, the one with most free blocks."""
    report = source.report
    size = max(report.used_blocks / max(report.running, 1), report.head_blocks)
    targets = [t for t in everybody if t.is_target]
    roomy = sorted((t for t in targets if t.free_blocks >= size), key=lambda t: (-t.freeness, t.uid))
    return roomy or sorted(targets, key=lambda t: (-t.free_blocks, t.uid))[:1]


# ---- llumnix: the paper ---------------------------------------------------------------------------------


def pair_by_threshold(
    unpaired: Sequence[Standing], held: Sequence[HeldRequests], settings: SchedulerSettings
) -> list[Pair]:
    """Section 4.4: those below one threshold give to those above it, lowest paired with highest."""
    threshold = settings.llumnix.migration_threshold
    sources = [s for s in unpaired if s.freeness < threshold and s.report.running]
    targets = [s for s in unpaired if s.freeness >= threshold and s.is_target]
    return [
        Pair(
            source,
            target,
            MoveGoal(until_freeness=threshold, headroom_blocks=source.headroom_blocks),
            _relief(source, threshold, target, threshold),
        )
        for source, target in lowest_with_highest(sources, targets)
    ]


def _relief(source: Standing, below: float, target: Standing, above: float) -> str:
    return (
        f"{source.instance} has freeness {source.freeness:.1f} < {below:g}, "
        f"{target.instance} has {target.freeness:.1f} >= {above:g}"
    )


# ---- llumnix+ -------------------------------------------------------------------------------------------


def pair_by_need(
    unpaired: Sequence[Standing], held: Sequence[HeldRequests], settings: SchedulerSettings
) -> list[Pair]:
    """Room for requests that fit nowhere comes first, then relief of the fullest; all are in one pair."""
    left = _Unpaired(unpaired)
    pairs = [*_blocked_heads(left, settings)]
    if settings.llumnix_plus.make_room:
        pairs += _room_for_held(left, held, settings)
    return pairs + _relieve(left, settings)


class _Unpaired:
    """The instances that are in no pair of this round yet.

    A target may be given requests, and none waits there. Invariant: `room_blocks` is the room of all targets.
    """

    def __init__(self, everybody: Iterable[Standing]) -> None:
        self._left = {s.uid: s for s in everybody}
        targets = (s for s in self._left.values() if s.is_target and not s.report.waiting)
        self._by_room = sorted(targets, key=lambda s: (s.room_blocks, -s.uid))
        self.room_blocks = sum(max(0.0, target.room_blocks) for target in self._by_room)

    def __iter__(self) -> Iterator[Standing]:
        return iter(list(self._left.values()))

    def roomiest(self) -> Standing | None:
        """The target with the most room."""
        while self._by_room and self._by_room[-1].uid not in self._left:
            self._by_room.pop()
        return self._by_room[-1] if self._by_room else None

    def take(self, pair: Pair) -> Pair:
        self.keep_out(pair.source)
        self.keep_out(pair.target)
        return pair

    def keep_out(self, standing: Standing) -> None:
        left = self._left.pop(standing.uid, None)
        if left is not None and left.is_target and not left.report.waiting:
            self.room_blocks -= max(0.0, left.room_blocks)


def _blocked_heads(left: _Unpaired, settings: SchedulerSettings) -> Iterator[Pair]:
    """A head of line without room goes where there is some, else running requests make way for it."""
    blocked = [s for s in left if s.report.waiting and s.report.head_blocks > s.free_blocks]
    for source in sorted(blocked, key=lambda s: (s.free_blocks - s.report.head_blocks, s.uid)):
        need = source.report.head_blocks
        target = left.roomiest()
        if target is None:
            return
        why = f"{source.instance} has {source.free_blocks} free blocks, its head of line needs {need}"
        if target.room_blocks >= need:
            yield left.take(_make_way(source, target, need, Queued.GO_ALONE, why, settings))
        elif settings.llumnix_plus.make_room and source.free_blocks + left.room_blocks >= need:
            yield left.take(_make_way(source, target, need, Queued.STAY, why, settings))


def _room_for_held(
    left: _Unpaired, held: Sequence[HeldRequests], settings: SchedulerSettings
) -> Iterator[Pair]:
    """For the next request of each API server: the instance with the most room gets enough of it."""
    for queue in sorted(held, key=lambda h: (h.head_priority, -h.num_tokens, h.api_server)):
        source = left.roomiest()
        if source is None:
            return
        left.keep_out(source)  # what is free there is for the request that is held
        reserve = settings.llumnix_plus.reserve_blocks * (source.batch + 1)
        need = demand_blocks(queue.head_tokens, source.report.block_size) + math.ceil(reserve)
        target = left.roomiest()
        # Half the job helps nobody: all others together must have room for what has to leave.
        if target is not None and source.free_blocks < need <= source.free_blocks + left.room_blocks:
            why = (
                f"a request of {need} blocks is held at api{queue.api_server}, "
                f"{source.instance} has {source.free_blocks} free blocks"
            )
            yield left.take(_make_way(source, target, need, Queued.STAY, why, settings))


def _make_way(
    source: Standing, target: Standing, need: int, queued: Queued, why: str, settings: SchedulerSettings
) -> Pair:
    goal = MoveGoal(
        until_freeness=-math.inf,
        until_free_blocks=need,
        headroom_blocks=source.headroom_blocks,
        target_room_blocks=target.room_blocks,
        target_running=target.batch,
        target_freeness=settings.llumnix_plus.migrate_out_threshold,
        queued=queued,
    )
    return Pair(source, target, goal, f"{why}; {target.instance} has room for {target.room_blocks:.0f}")


def _relieve(left: _Unpaired, settings: SchedulerSettings) -> list[Pair]:
    low, high = settings.llumnix_plus.migrate_out_threshold, settings.llumnix_plus.migrate_in_threshold
    sources = [s for s in left if s.freeness < low and s.report.running > 1]
    targets = [t for t in left if t.freeness >= high and t.is_target and not t.report.waiting]
    return [
        Pair(
            source,
            target,
            MoveGoal(
                until_freeness=low,
                headroom_blocks=source.headroom_blocks,
                target_room_blocks=target.room_blocks,
                target_running=target.batch,
                target_freeness=high if source.is_short_of_headroom_only(low) else low,
                must_pay=True,
            ),
            _relief(source, low, target, high),
        )
        for source, target in lowest_with_highest(sources, targets)
    ]
