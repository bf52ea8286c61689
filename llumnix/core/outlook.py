"""What a dispatcher expects of one instance: its latest report plus exactly what this server sent since."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llumnix.core.events import DispatchEntry
from llumnix.core.load import Headroom, InstanceReport, demand_blocks, headroom_in_blocks, virtual_blocks
from llumnix.core.prefixes import SeenPrefixes


@dataclass(slots=True)
class Outlook:
    """One instance as one API server sees it; rules score it, and the score is kept until something changes.

    Invariants: `num_sent == num_covered + len(unseen)`; `unseen_blocks` is the demand of `unseen`;
    `unseen_classes` counts it by engine priority and holds no zeros.
    """

    entry: DispatchEntry
    report: InstanceReport
    """The latest one, or a stand-in of an empty instance (`reported` is False)."""
    headroom: Mapping[int, Headroom]
    reported: bool = False
    num_sent: int = 0
    """Requests sent there on the present connection."""
    num_covered: int = 0
    """How many of them a report has shown to be taken in."""
    unseen: deque[tuple[int, int]] = field(default_factory=deque)
    """(prompt tokens, engine priority) of requests sent that no report covers yet, oldest first."""
    unseen_blocks: int = 0
    unseen_classes: dict[int, int] = field(default_factory=dict)
    num_dispatched: int = 0
    """Requests ever sent, for `round_robin`; starts level with the others."""
    prefixes: SeenPrefixes = field(default_factory=SeenPrefixes)
    score: float = 0.0
    queued: int = 0
    headroom_blocks: Mapping[int, int] = field(init=False)
    reported_virtual_blocks: float = field(init=False)

    def __post_init__(self) -> None:
        self._measure_headroom()
        self.reported_virtual_blocks = virtual_blocks(self.report, self.headroom_blocks)

    def _measure_headroom(self) -> None:
        report = self.report
        self.headroom_blocks = headroom_in_blocks(self.headroom, report.block_size, report.total_blocks)

    def observe(self, report: InstanceReport, server_index: int) -> None:
        """Take a newer report as the base, and drop what it already counts."""
        old = self.report
        self.report = report
        self.reported = True
        if (report.block_size, report.total_blocks) != (old.block_size, old.total_blocks):
            self._measure_headroom()
            self.unseen_blocks = sum(demand_blocks(tokens, report.block_size) for tokens, _ in self.unseen)
        self.reported_virtual_blocks = virtual_blocks(report, self.headroom_blocks)
        # A count beyond what was sent belongs to a former connection whose end the instance has not seen yet.
        taken = min(report.taken.get(server_index, 0), self.num_sent)
        while self.num_covered < taken:
            self._cover_oldest()

    def _cover_oldest(self) -> None:
        num_tokens, priority = self.unseen.popleft()
        self.num_covered += 1
        self.unseen_blocks -= demand_blocks(num_tokens, self.report.block_size)
        self.unseen_classes[priority] -= 1
        if self.unseen_classes[priority] == 0:
            del self.unseen_classes[priority]

    def send(self, prompt_tokens: int, engine_priority: int) -> None:
        """Count one request that was just sent there."""
        self.num_sent += 1
        self.num_dispatched += 1
        self.unseen.append((prompt_tokens, engine_priority))
        self.unseen_blocks += demand_blocks(prompt_tokens, self.report.block_size)
        self.unseen_classes[engine_priority] = self.unseen_classes.get(engine_priority, 0) + 1

    def note_prefix(self, keys: Sequence[int]) -> None:
        """The prompt that was just sent there begins so."""
        self.prefixes.add(keys, self.report.total_blocks * self.report.block_size)

    def reset_sent(self) -> None:
        """Start counting anew: the connection was made again, and the instance dropped what came before."""
        self.num_sent = self.num_covered = self.unseen_blocks = 0
        self.unseen.clear()
        self.unseen_classes.clear()

    @property
    def num_slots(self) -> int:
        """Requests that could start to run at once; none while others wait, as they go first."""
        report = self.report
        return max(report.max_running - report.running, 0) if report.waiting == 0 else 0

    def num_requests(self, weight: int) -> int:
        """Requests there or on their way; `weight` API servers are taken to have sent as many as this one."""
        report = self.report
        return report.running + report.waiting + report.arriving + weight * len(self.unseen)

    def room_blocks(self, weight: int) -> int:
        """Blocks that are free and not spoken for; below 0 with a queue that does not fit."""
        report = self.report
        wanted_blocks = report.used_blocks + report.queued_blocks + report.backlog_blocks
        return report.total_blocks - wanted_blocks - weight * self.unseen_blocks

    def demand_blocks(self, num_tokens: int) -> int:
        """Of a request of that many tokens."""
        return demand_blocks(num_tokens, self.report.block_size)

    def unseen_headroom_blocks(self) -> int:
        """Headroom of priorities that run there only through what was sent since."""
        if not self.unseen_classes or self.report.waiting:
            return 0
        classes = self.report.classes
        return sum(
            self.headroom_blocks.get(priority, 0)
            for priority in self.unseen_classes
            if priority not in classes or classes[priority].running == 0
        )

    def headroom_in_use(self, but_of: int) -> int:
        """Headroom of all priorities with requests there or on their way, but for one."""
        here = {priority for priority, part in self.report.classes.items() if part.running > 0}
        if not self.report.waiting:
            here |= self.unseen_classes.keys()
        return sum(self.headroom_blocks.get(priority, 0) for priority in here if priority != but_of)

    def is_home_of(self, priority: int) -> bool:
        """Requests of this priority run there and leave its headroom free."""
        headroom_blocks = self.headroom_blocks.get(priority, 0)
        part = self.report.classes.get(priority)
        if not headroom_blocks or part is None or not part.running:
            return False
        return part.used_blocks + self.unseen_blocks + headroom_blocks < self.report.total_blocks

    def num_queued(self) -> int:
        """Requests waiting there as reported, plus those sent since that will not start at once."""
        num_unseen = len(self.unseen)
        if num_unseen == 0:
            return self.report.waiting
        free_blocks = max(self.report.total_blocks - self.report.used_blocks, 0)
        num_fitting = num_unseen * free_blocks // self.unseen_blocks  # by their mean demand
        return self.report.waiting + num_unseen - min(num_unseen, self.num_slots, num_fitting)

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        assert self.num_sent == self.num_covered + len(self.unseen)
        assert self.unseen_blocks == sum(demand_blocks(t, self.report.block_size) for t, _ in self.unseen)
        assert sum(self.unseen_classes.values()) == len(self.unseen)
        assert all(count > 0 for count in self.unseen_classes.values())
