"""Load of an instance: what it reports, and the paper's virtual usage and freeness (Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ClassLoad:
    """Part of an instance's load that one engine priority accounts for."""

    running: int = 0
    waiting: int = 0
    used_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Headroom:
    """Room kept free beside running requests of one priority (section 4.4); at most one of both is set."""

    tokens: int = 0
    """Literally this much."""
    target_load_tokens: int | None = None
    """The paper's: all of the capacity but this much, at which requests decode at their ideal speed."""

    def blocks(self, block_size: int, total_blocks: int) -> int:
        """In whole blocks of an instance."""
        if self.target_load_tokens is None:
            return -(-self.tokens // block_size)
        return max(0, total_blocks - self.target_load_tokens // block_size)


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """What an instance says of itself after a step; the wire carries this very class (msgspec).

    Invariants: `used_blocks <= total_blocks`; the sums over `classes` equal `running` and `waiting`;
    `head_blocks <= queued_blocks`; `seq` grows with every report of one incarnation.
    """

    uid: int
    """Unique number of this incarnation of the instance, never reused in a cluster's life."""
    seq: int
    block_size: int
    total_blocks: int
    used_blocks: int
    """Blocks held by live requests; blocks that only cache prefixes are free."""
    max_running: int
    running: int
    waiting: int
    queued_blocks: int = 0
    """Demand in blocks of all waiting requests."""
    head_blocks: int = 0
    """Demand in blocks of the request that is next to be admitted (head of line)."""
    classes: Mapping[int, ClassLoad] = field(default_factory=dict)
    """By engine priority."""
    step_ms: float = 0.0
    """Moving average of the time one engine step takes."""
    tokens_per_s: float = 0.0
    """Moving average of generated tokens."""
    taken: Mapping[int, int] = field(default_factory=dict)
    """By API server index: how many requests of its current connection were taken in so far."""
    paused: bool = False
    """True while asleep or paused by an engine-wide call."""
    backlog_blocks: int = 0
    """Blocks that running requests lack for tokens they have already (a chunked prefill under way)."""
    leaving: int = 0
    """Running requests that migrate away; they and their blocks are in the figures above."""
    leaving_blocks: int = 0
    arriving: int = 0
    """Migrations to this instance; what is reserved for them is in `used_blocks`."""
    copy_blocks_per_s: float = 0.0
    """How fast it has lately copied blocks to another instance; 0: not known yet."""
    refusals: Mapping[str, int] = field(default_factory=dict)
    """Why requests that were to leave have just stayed, the commonest reasons with their counts."""


def demand_blocks(num_tokens: int, block_size: int) -> int:
    """Blocks that `num_tokens` tokens of a request need; a request needs at least one."""
    return max(1, -(-num_tokens // block_size))


def headroom_in_blocks(
    headroom: Mapping[int, Headroom], block_size: int, total_blocks: int
) -> dict[int, int]:
    """Headroom of each engine priority, in whole blocks of one instance."""
    return {priority: room.blocks(block_size, total_blocks) for priority, room in headroom.items()}


def virtual_blocks(
    report: InstanceReport, headroom_blocks: Mapping[int, int], *, draining: bool = False
) -> float:
    """Sum of the virtual usages of an instance's requests, in blocks (Algorithm 1).

    Queued requests count 0 but for the head of line, which counts its demand. The paper shares the headroom
    of a priority out among its running requests, so it counts once for every priority that has any. The fake
    request of a draining instance makes the sum infinite.
    """
    if draining:
        return math.inf
    present = (priority for priority, part in report.classes.items() if part.running > 0)
    return report.used_blocks + report.head_blocks + sum(headroom_blocks.get(p, 0) for p in present)


def freeness(report: InstanceReport, headroom_blocks: Mapping[int, int], *, draining: bool = False) -> float:
    """Algorithm 1's freeness, in blocks per running request: below 0 when overloaded, -inf when draining."""
    free_blocks = report.total_blocks - virtual_blocks(report, headroom_blocks, draining=draining)
    return free_blocks / max(report.running, 1)


def free_blocks_after_moves(report: InstanceReport) -> int:
    """Blocks that no live request holds once every migration under way is done."""
    return report.total_blocks - report.used_blocks + report.leaving_blocks


def batch_after_moves(report: InstanceReport) -> int:
    """Running requests once every migration under way is done."""
    return max(0, report.running - report.leaving + report.arriving)


def freeness_after_moves(report: InstanceReport, headroom_blocks: Mapping[int, int]) -> float:
    """Algorithm 1's freeness as it will be once every migration under way is done.

    What was decided and has not happened yet must not be decided again.
    """
    free_blocks = report.total_blocks - virtual_blocks(report, headroom_blocks) + report.leaving_blocks
    return free_blocks / max(batch_after_moves(report), 1)


def queued_load_freeness(report: InstanceReport) -> float:
    """Freeness of the `load` rule (INFaaS++), in blocks per running request: all queued demand is counted.

    Queued requests count in the demand, not in the batch: were they in both, one more queued request would
    make an overloaded instance look freer.
    """
    return (report.total_blocks - report.used_blocks - report.queued_blocks) / max(report.running, 1)
