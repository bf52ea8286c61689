"""What live migration can be told to do differently; llumnix.config fills it in from [migration]."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HandoverSettings:
    """Settings of core.handover. Invariant: counts are 1 or more but for `growth_blocks`, times positive."""

    last_stage_blocks: int = 1
    """Blocks left to copy, the partial one counted, at which the request is taken out of the batch."""
    max_stages: int = 3
    """Copies made while the request goes on, before the last one."""
    max_concurrent: int = 2
    """Migrations that one instance takes part in at a time, in both directions together."""
    max_inflight_blocks: int = 512
    """Blocks that one instance may have under way."""
    growth_blocks: int = 2
    """Reserved beyond what the request has, for what it generates meanwhile."""
    timeout_s: float = 10.0
    """One migration, up to its COMMIT."""
    handover_timeout_s: float = 2.0
    """The source's wait for ACCEPTED, and the API server's wait with an open gap."""
    max_attempts: int = 5
    """A request that lost so many instances is given up: it may be what kills them."""
    resume_timeout_s: float = 30.0
    """How long a request waits for an instance when none is left."""

    @property
    def max_copy_blocks(self) -> int:
        """Blocks of one copy, so that all migrations of an instance together keep to the limit."""
        return max(1, self.max_inflight_blocks // self.max_concurrent)
