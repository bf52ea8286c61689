"""Single runs by their parameters, one after the other or in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

from llumnix.sim.records import RunResult, SimSetup
from llumnix.sim.workloads import Workload


@dataclass(frozen=True, slots=True)
class Run:
    """A simulation that is the same whenever it is run."""

    setup: SimSetup
    workload: Workload
    ignore_priorities: bool = False
    """Requests keep their class in the result, but the cluster treats all alike (Llumnix-base)."""

    def simulate(self) -> RunResult:
        requests = self.workload.build()
        from llumnix.sim.cluster import simulate

        if not self.ignore_priorities:
            return simulate(self.setup, requests)
        result = simulate(self.setup, [replace(request, priority=0) for request in requests])
        classed = tuple(
            replace(outcome, priority=request.priority)
            for outcome, request in zip(result.requests, requests, strict=True)
        )
        return replace(result, requests=classed)


def simulate_all(runs: Sequence[Run], jobs: int = 1) -> Iterator[RunResult]:
    """The results in the order of the runs, each as soon as it and those before it are there."""
    if jobs == 1:
        yield from map(Run.simulate, runs)
        return
    # Processes that start afresh: the engine's libraries do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(Run.simulate, runs)
