"""What a dispatcher answers: an instance with the numbers that decided it, or that the request must wait."""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.core.load import InstanceReport
from llumnix.core.outlook import Outlook


@dataclass(frozen=True, slots=True)
class Choice:
    """The instance a request goes to, and the numbers that decided it."""

    uid: int
    instance: str
    rule: str
    score: float
    best_score: float
    """More than `score` where the prompt's beginning decided."""
    num_candidates: int
    report: InstanceReport | None
    num_unseen: int
    """Requests sent there by this server that the report does not cover."""
    num_cached_tokens: int = 0
    """Of the prompt's beginning, that were sent there before."""

    @property
    def reason(self) -> str:
        """One sentence with the numbers; built only when somebody looks at it."""
        rank = "is" if self.score >= self.best_score else f"is near {self.best_score:.2f},"
        head = f"{self.rule} {self.score:.2f} {rank} the best of {self.num_candidates} instances"
        if self.num_cached_tokens:
            head += f", and {self.num_cached_tokens} tokens of the prompt were there before"
        if self.report is None:
            return f"{head}: {self.instance} has not reported yet, {self.num_unseen} sent there"
        r = self.report
        return (
            f"{head}: {self.instance} has {r.running} running, {r.waiting} waiting, "
            f"{r.used_blocks}/{r.total_blocks} blocks used, {self.num_unseen} sent since"
        )


@dataclass(frozen=True, slots=True)
class Hold:
    """No instance can take the request now: keep it and ask again when the table or a report changes."""

    reason: str
    is_any_open: bool
    """An instance is there and will have room some time."""
    is_any_refuge: bool = False
    """The same for requests that have lost their instance (DispatchEntry)."""


@dataclass(frozen=True, slots=True)
class Admission:
    """When an instance has room for one more request: late binding holds it until one has."""

    reserve_blocks: float
    """Must stay free for every request there, this one too, to grow."""

    def admits(self, outlook: Outlook, prompt_tokens: int, weight: int) -> bool:
        """As far as is known here; an instance without any request has room for every one."""
        num_requests = outlook.num_requests(weight)
        if num_requests == 0:
            return True
        if outlook.report.waiting or outlook.num_slots <= weight * len(outlook.unseen):
            return False
        reserve = self.reserve_blocks * (num_requests + 1)
        return outlook.room_blocks(weight) - outlook.demand_blocks(prompt_tokens) >= reserve
