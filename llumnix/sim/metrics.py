"""What is measured of a run, as the paper defines it (section 6.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Self

import numpy as np

from llumnix.sim.records import RequestResult, RunResult


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures of a set of requests; times in seconds.

    prefill: from arrival to first token, queueing included. decode: mean gap between a request's tokens
    after the first; requests of one token have none. request: from arrival to last token. preemption loss:
    mean over all requests of the queueing and recomputation that preemption cost them.
    """

    requests: int
    prefill_mean_s: float
    prefill_p50_s: float
    prefill_p95_s: float
    prefill_p99_s: float
    decode_mean_s: float
    decode_p50_s: float
    decode_p95_s: float
    decode_p99_s: float
    request_mean_s: float
    request_p50_s: float
    request_p95_s: float
    request_p99_s: float
    preemption_loss_s: float
    preemptions: int
    migrations: int
    migrations_aborted: int
    average_instances: float
    duration_s: float

    @classmethod
    def of(cls, run: RunResult, requests: Sequence[RequestResult] | None = None) -> Self:
        """Metrics of a run, or of some of its requests (preemptions and migrations are then theirs too)."""
        chosen = run.requests if requests is None else requests
        whole = requests is None
        return cls(
            requests=len(chosen),
            **_spread("prefill", (request.prefill_s for request in chosen)),
            **_spread("decode", (request.decode_s for request in chosen if request.output_tokens > 1)),
            **_spread("request", (request.latency_s for request in chosen)),
            preemption_loss_s=_mean([request.preemption_loss_s for request in chosen]),
            preemptions=run.preemptions if whole else sum(request.preemptions for request in chosen),
            migrations=run.migrations_committed if whole else sum(request.migrations for request in chosen),
            migrations_aborted=run.migrations_aborted,
            average_instances=run.average_instances,
            duration_s=run.duration_s,
        )

    @classmethod
    def median_of(cls, runs: Sequence[Self]) -> Self:
        """Each figure's median over runs that differ in their seed."""
        rows = [asdict(run) for run in runs]
        return cls(**{name: median(row[name] for row in rows) for name in rows[0]})


def _spread(name: str, values: Iterable[float]) -> dict[str, float]:
    data = list(values)
    p50, p95, p99 = np.percentile(data, (50, 95, 99)).tolist() if data else (0.0, 0.0, 0.0)
    return {
        f"{name}_mean_s": _mean(data),
        f"{name}_p50_s": p50,
        f"{name}_p95_s": p95,
        f"{name}_p99_s": p99,
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
