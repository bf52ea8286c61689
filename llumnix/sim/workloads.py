"""Workloads: which requests arrive when, drawn from distributions or read from a trace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llumnix.errors import ConfigError
from llumnix.sim.lengths import DATASETS
from llumnix.sim.records import SimRequest
from llumnix.sim.traces import read_trace

PAPER_SEED = 0xCADE


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload by its parameters. Invariants: all numbers are positive, shares are within 0..1."""

    trace: str
    """A name in DATASETS, or a CSV or JSONL file."""
    requests: int | None = 10_000
    """None: all of a file."""
    rate: float | None = None
    """Requests per second; None: as a file has it."""
    cv: float = 1.0
    """Coefficient of variation of the Gamma inter-arrival times; 1 is a Poisson process."""
    seed: int = PAPER_SEED
    high_share: float = 0.0
    """Share of requests of high priority."""
    high_priority: int = -10
    """Engine priority of those; the others have 0."""
    prefix_groups: int = 0
    """Requests are spread at random over this many groups with a common beginning."""
    prefix_tokens: int = 0
    """Length of that beginning; of a shorter prompt, all."""
    longest: int | None = None
    """Requests of more tokens, prompt and output together, are left out."""

    def build(self) -> tuple[SimRequest, ...]:
        """The requests in order of arrival; the same for the same parameters. Raises ConfigError."""
        rng = np.random.RandomState(self.seed)
        requests = self._drawn(rng) if self.trace in DATASETS else self._read()
        # After the lengths and times, so that these are the same with and without priorities and prefixes.
        if self.high_share:
            high = rng.random_sample(len(requests)) < self.high_share
            requests = [
                replace(request, priority=self.high_priority if urgent else 0)
                for request, urgent in zip(requests, high, strict=True)
            ]
        if self.prefix_groups:
            requests = self._with_prefixes(requests, rng)
        limit = self.longest or math.inf
        return tuple(r for r in requests if r.prompt_tokens + r.output_tokens <= limit)

    def _drawn(self, rng: np.random.RandomState) -> list[SimRequest]:
        if self.rate is None:
            raise ConfigError(f"trace {self.trace} has no arrival times: expected a rate (--rate).")
        count = self.requests or 10_000
        prompts, outputs = (lengths.draw(rng, count).tolist() for lengths in DATASETS[self.trace])
        arrivals = arrival_times(rng, count, self.rate, self.cv).tolist()
        columns = zip(arrivals, prompts, outputs, strict=True)
        return [SimRequest(number, *row) for number, row in enumerate(columns)]

    def _read(self) -> list[SimRequest]:
        path = Path(self.trace)
        if not path.suffix:
            known = ", ".join(DATASETS)
            raise ConfigError(f'trace = "{self.trace}" is not valid: expected a file, or one of {known}.')
        requests = read_trace(path, self.requests)
        if self.rate is None:
            return requests
        span_s = requests[-1].arrival_s
        if span_s == 0:
            raise ConfigError(f"{path} has one arrival time only: expected more to bring to a rate (--rate).")
        stretch = (len(requests) - 1) / span_s / self.rate
        return [replace(request, arrival_s=request.arrival_s * stretch) for request in requests]

    def _with_prefixes(self, requests: Sequence[SimRequest], rng: np.random.RandomState) -> list[SimRequest]:
        groups = rng.randint(self.prefix_groups, size=len(requests)).tolist()
        return [
            replace(r, prefix_group=group, prefix_tokens=min(self.prefix_tokens, r.prompt_tokens))
            for r, group in zip(requests, groups, strict=True)
        ]


def arrival_times(rng: np.random.RandomState, count: int, rate: float, cv: float) -> NDArray[np.float64]:
    """Times in seconds, the first at 0, with Gamma inter-arrivals: shape 1/cv^2, scale cv^2/rate."""
    gaps = rng.gamma(1 / cv**2, cv**2 / rate, size=count)
    return np.cumsum(gaps) - gaps[0]
