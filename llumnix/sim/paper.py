"""The experiments behind the paper's figures, run in the simulator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llumnix.core.load import Headroom
from llumnix.errors import ConfigError
from llumnix.sim import published
from llumnix.sim.metrics import Metrics
from llumnix.sim.records import RunResult, SimScaling, SimSetup
from llumnix.sim.runs import Run, simulate_all
from llumnix.sim.workloads import PAPER_SEED, Workload

HIGH_PRIORITY = -10
HIGH_TARGET_TOKENS = 1600
"""Load of an instance at which high-priority requests decode at their ideal speed (section 6.4)."""
BASE = "-base"
"""Ending of a policy's name that stands for the same policy without priorities."""
_TUNED_THRESHOLDS = {"M-M": 10.0, "S-L": 10.0}
_FIGURE_11_PANELS = ("ShareGPT", "BurstGPT", "S-S", "M-M", "L-L", "S-L", "L-S")
POLICIES = {
    11: ("round_robin", "least_requests", "load", "llumnix", "llumnix+"),
    13: ("llumnix-base", "llumnix", "llumnix+-base", "llumnix+"),
    14: ("load", "llumnix", "llumnix+"),
    15: ("load", "llumnix", "llumnix+"),
}
"""By figure: the policies that are compared if none are named."""
PRESSURE_POLICY = {11: "load", 13: "llumnix-base", 14: "load"}
"""By figure: whose published P99 prefill is the pressure to match. Figure 15 compares at equal P99."""


@dataclass(frozen=True, slots=True)
class Point:
    """One position on the x axis: a cluster and a workload, and the panels that show its outcome."""

    figure: int
    panels: tuple[str, ...]
    x: float
    setup: SimSetup
    workload: Workload

    @property
    def rate(self) -> float:
        assert self.workload.rate is not None
        return self.workload.rate

    def at(self, rate: float) -> Point:
        """The same place on the x axis, with another request rate."""
        return replace(self, workload=replace(self.workload, rate=rate))

    @property
    def x_is_rate(self) -> bool:
        """Otherwise it is the burstiness, or nothing."""
        return self.workload.cv == 1.0

    def run(self, policy: str, seed: int) -> Run:
        """`policy` may end in "-base": without priorities."""
        setup = replace(self.setup, policy=policy.removesuffix(BASE), seed=seed)
        is_base = policy.endswith(BASE)
        if is_base:
            setup = replace(setup, headroom={})
        return Run(setup, replace(self.workload, seed=seed), ignore_priorities=is_base)

    def published(self, panel: str, policy: str) -> published.Values:
        """Empty where the paper has no such point."""
        return published.points()[self.figure, panel].get(self.x, {}).get(policy, {})


@dataclass(frozen=True, slots=True)
class Row:
    """One point of a panel under one policy, beside what was published for it."""

    figure: int
    panel: str
    x: float
    rate: float
    cv: float
    policy: str
    seeds: tuple[int, ...]
    metrics: Metrics
    published: Mapping[str, float] = field(default_factory=dict)


def points_of(figure: int, base: SimSetup, requests: int, panels: Sequence[str] = ()) -> list[Point]:
    """All points of a figure, or those of some panels, at the published rates. Raises ConfigError."""
    points = _EXPERIMENTS[figure](base, requests)
    known = list(dict.fromkeys(panel for point in points for panel in point.panels))
    for panel in panels:
        if panel not in known:
            raise ConfigError(f'panel = "{panel}" is not valid: figure {figure} has {", ".join(known)}.')
    if not panels:
        return points
    chosen = ((point, tuple(p for p in point.panels if p in panels)) for point in points)
    return [replace(point, panels=shown) for point, shown in chosen if shown]


def at_rates(points: Sequence[Point], rates: Sequence[float]) -> list[Point]:
    """The points of these rates, or all that there are; where x is something else, they run at each rate."""
    if not rates:
        return list(points)
    moved = {
        (point.panels, rate if point.x_is_rate else point.x, rate): point
        for point in points
        for rate in rates
    }
    return [replace(point.at(rate), x=x) for (_, x, rate), point in moved.items()]


def compare(points: Sequence[Point], policies: Sequence[str], seeds: int = 1, jobs: int = 1) -> Iterable[Row]:
    """Rows in order of points, policies and panels; with several seeds each figure is their median."""
    numbers = tuple(range(PAPER_SEED, PAPER_SEED + seeds))
    runs = [point.run(policy, seed) for point in points for policy in policies for seed in numbers]
    results = simulate_all(runs, jobs)
    for point in points:
        for policy in policies:
            outcomes = [next(results) for _ in numbers]
            for panel in point.panels:
                yield Row(
                    figure=point.figure,
                    panel=panel,
                    x=point.x,
                    rate=point.rate,
                    cv=point.workload.cv,
                    policy=policy,
                    seeds=numbers,
                    metrics=Metrics.median_of([_metrics(outcome, panel) for outcome in outcomes]),
                    published=point.published(panel, policy),
                )


def _metrics(run: RunResult, panel: str) -> Metrics:
    if panel not in ("high", "normal"):
        return Metrics.of(run)
    chosen = [request for request in run.requests if (request.priority < 0) == (panel == "high")]
    return Metrics.of(run, chosen)


def _figure_11(base: SimSetup, requests: int) -> list[Point]:
    """Serving performance under Poisson arrivals."""
    return [
        Point(
            11,
            (panel,),
            rate,
            replace(base, migration_threshold=_TUNED_THRESHOLDS.get(panel, base.migration_threshold)),
            Workload(panel, requests, rate),
        )
        for panel in _FIGURE_11_PANELS
        for rate in published.points()[11, panel]
    ]


def _figure_13(base: SimSetup, requests: int) -> list[Point]:
    """Priorities: 10 % of the requests are of high priority, arrivals come in bursts."""
    setup = replace(base, headroom={HIGH_PRIORITY: Headroom(target_load_tokens=HIGH_TARGET_TOKENS)})
    return [
        Point(
            13,
            ("high", "normal"),
            cv,
            setup,
            Workload("S-S", requests, 26.0, cv=cv, high_share=0.1, high_priority=HIGH_PRIORITY),
        )
        for cv in published.points()[13, "high"]
    ]


def _figure_14(base: SimSetup, requests: int) -> list[Point]:
    """Auto-scaling under rising rates, and under rising burstiness."""
    setup = _scaling(base, 10.0)
    poisson = [
        Point(14, ("poisson_qps",), rate, setup, Workload("L-L", requests, rate))
        for rate in published.points()[14, "poisson_qps"]
    ]
    bursts = [
        Point(14, ("gamma_cv",), cv, setup, Workload("L-L", requests, 2.0, cv=cv))
        for cv in published.points()[14, "gamma_cv"]
    ]
    return poisson + bursts


def _figure_15(base: SimSetup, requests: int) -> list[Point]:
    """Cost against latency: what each scaling threshold takes and gives."""
    return [
        Point(
            15,
            (f"threshold_{threshold}",),
            0.0,
            _scaling(base, float(threshold)),
            Workload("L-L", requests, 2.0, cv=2.0),
        )
        for threshold in (5, 25, 45, 65, 85)
    ]


def _scaling(base: SimSetup, threshold: float) -> SimSetup:
    return replace(base, scaling=SimScaling(1, base.instances, threshold, threshold + 50.0))


_EXPERIMENTS = {11: _figure_11, 13: _figure_13, 14: _figure_14, 15: _figure_15}
