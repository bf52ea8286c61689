"""What goes into a simulation and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llumnix.core.handover.settings import HandoverSettings
from llumnix.core.load import Headroom

_PREFIX_TOKEN = 1 << 30
"""Above the number of every request: the tokens of shared prefixes."""


@dataclass(frozen=True, slots=True)
class SimRequest:
    """A request of a workload. Invariant: `prefix_tokens <= prompt_tokens`."""

    id: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    """Engine priority: smaller is more urgent."""
    prefix_group: int | None = None
    """Requests of one group begin with the same `prefix_tokens` tokens."""
    prefix_tokens: int = 0

    def prompt_token_ids(self) -> list[int]:
        """Only requests of one prefix group have any in common, and at most up to the last but one."""
        num_shared = 0
        if self.prefix_group is not None:
            num_shared = min(self.prefix_tokens, self.prompt_tokens - 1)
        shared = [_PREFIX_TOKEN + (self.prefix_group or 0)] * num_shared
        return shared + [self.id] * (self.prompt_tokens - num_shared)


@dataclass(frozen=True, slots=True)
class SimScaling:
    """Auto-scaling between two counts on the average freeness, in blocks per request."""

    min_instances: int
    max_instances: int
    scale_up_freeness: float = 10.0
    scale_down_freeness: float = 60.0
    interval_s: float = 10.0
    """Between two looks."""
    hold_s: float = 30.0
    """A bound must be crossed this long before anything is done."""
    start_s: float = 20.0
    """From the decision to the first request that the new instance takes."""


@dataclass(frozen=True, slots=True)
class SimSetup:
    """A cluster to simulate; every default is what production has."""

    profile: str = "a10-llama-7b"
    policy: str = "llumnix+"
    instances: int = 16
    """At the start; with `scaling` it moves between its bounds."""
    scaling: SimScaling | None = None
    api_servers: int = 1
    seed: int = 0
    """Of all that the simulator itself draws; the workload has its own."""
    rescheduling: bool = True
    migration_threshold: float = 3.0
    """Of `llumnix`: freeness that tells sources from destinations."""
    headroom: Mapping[int, Headroom] = field(default_factory=dict)
    """By engine priority."""
    prefix_caching: bool = True
    latency_s: float = 0.0005
    """One way, between any two processes."""
    plus: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `llumnix+` that differ from its defaults (core.settings.LlumnixPlusSettings)."""
    handover: HandoverSettings = field(default_factory=HandoverSettings)
    """As [migration] has them."""


@dataclass(frozen=True, slots=True)
class RequestResult:
    """What became of one request; times in seconds of the run, those of requests are absolute."""

    id: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int
    first_token_s: float
    finish_s: float
    preemptions: int
    preemption_loss_s: float
    """Time it spent queued after being preempted and computing again what it had computed before."""
    migrations: int
    instances: tuple[int, ...]
    """Those it ran on, in order."""

    @property
    def prefill_s(self) -> float:
        """From arrival to first token, queueing included."""
        return self.first_token_s - self.arrival_s

    @property
    def decode_s(self) -> float:
        """Mean time between tokens after the first; 0 for a request of one token."""
        return (self.finish_s - self.first_token_s) / max(1, self.output_tokens - 1)

    @property
    def latency_s(self) -> float:
        return self.finish_s - self.arrival_s


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run. `requests` are in order of their ids."""

    setup: SimSetup
    requests: tuple[RequestResult, ...]
    migrations_committed: int
    migrations_aborted: int
    preemptions: int
    instance_counts: tuple[tuple[float, int], ...]
    """(time, instances that are up or starting), one entry per change."""
    average_instances: float
    duration_s: float
    """From the first arrival to the last finish, in virtual seconds."""
    engine_steps: int
    cpu_s: float
    """Processor time the run took; the one figure that differs between two runs of a seed."""
