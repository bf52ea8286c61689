"""Whole runs: small clusters under pressure, all books right at the end, every request answered once."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from llumnix.core.load import Headroom
from llumnix.sim.cluster import simulate
from llumnix.sim.records import RunResult, SimRequest, SimScaling, SimSetup

SMALL = SimSetup(policy="llumnix", instances=3)


def workload(num: int, rate: float, seed: int = 1, urgent: float = 0.0) -> list[SimRequest]:
    """Mostly short requests and some long ones, at `rate` per second."""
    draw = random.Random(seed)
    now, requests = 0.0, []
    for number in range(num):
        now += draw.expovariate(rate)
        long = draw.random() < 0.25
        prompt, output = (draw.randint(1500, 4000), draw.randint(300, 1500)) if long else (100, 120)
        priority = -1 if draw.random() < urgent else 0
        requests.append(SimRequest(number, now, prompt, output, priority))
    return requests


def comparable(result: RunResult) -> RunResult:
    return replace(result, cpu_s=0.0)


@pytest.mark.parametrize("policy", ["round_robin", "least_requests", "load", "llumnix", "llumnix+"])
def test_every_policy_answers_every_request(policy: str) -> None:
    requests = workload(60, 1.0)
    result = simulate(replace(SMALL, policy=policy, api_servers=2), requests)
    assert [r.id for r in result.requests] == [r.id for r in requests]
    for got in result.requests:
        assert got.arrival_s < got.first_token_s <= got.finish_s
        assert got.migrations == len(got.instances) - 1
        # No token can come faster than an empty instance makes it.
        assert got.decode_s >= 0.0413 or got.output_tokens == 1
    assert sum(r.preemptions for r in result.requests) == result.preemptions
    if policy in ("round_robin", "least_requests", "load"):
        assert result.migrations_committed == 0


def test_migrations_are_real_and_leave_the_books_in_order() -> None:
    result = simulate(SMALL, workload(120, 1.2))  # raises if a block or a request is unaccounted for
    assert result.migrations_committed > 0
    assert sum(r.migrations for r in result.requests) == result.migrations_committed


@pytest.mark.parametrize("policy", ["llumnix", "llumnix+"])
def test_two_runs_of_one_seed_are_the_same(policy: str) -> None:
    requests = workload(100, 1.2, urgent=0.1)
    setup = replace(SMALL, policy=policy, api_servers=3, headroom={-1: Headroom(target_load_tokens=1600)})
    first, second = simulate(setup, requests), simulate(setup, requests)
    assert comparable(first) == comparable(second)
    other = simulate(replace(setup, seed=1), requests)
    assert comparable(other) != comparable(first)  # requests came in by other API servers


def test_preemption_costs_what_it_delays() -> None:
    # Two long ones fill the only instance; as they grow, the one that came later gives way and comes back.
    requests = [SimRequest(0, 0.0, 6300, 700), SimRequest(1, 0.1, 6300, 700)]
    result = simulate(SimSetup(policy="load", instances=1), requests)
    first, second = result.requests
    assert (first.preemptions, second.preemptions) == (0, 1)
    assert first.preemption_loss_s == 0.0
    # It waits for the first to end, then computes what it had again.
    assert second.preemption_loss_s > 6300 * 0.2028e-3
    # The rest is decoding at its usual pace.
    decoding_s = second.finish_s - second.first_token_s - second.preemption_loss_s
    assert 699 * 0.0413 < decoding_s < 699 * 0.06


def test_urgent_requests_wait_less() -> None:
    requests = workload(150, 2.0, urgent=0.15)
    result = simulate(replace(SMALL, instances=2, policy="load"), requests)
    urgent = [r.prefill_s for r in result.requests if r.priority < 0]
    normal = [r.prefill_s for r in result.requests if r.priority == 0]
    assert sum(urgent) / len(urgent) < sum(normal) / len(normal) / 2


def test_instances_come_and_go_with_the_load() -> None:
    scaling = SimScaling(1, 4, scale_up_freeness=20.0, hold_s=5.0, interval_s=2.0, start_s=10.0)
    busy = workload(120, 2.5)
    quiet = [replace(r, id=r.id + 1000, arrival_s=r.arrival_s * 12 + 200) for r in workload(20, 1.0, seed=2)]
    result = simulate(SimSetup(policy="llumnix", instances=1, scaling=scaling), busy + quiet)
    counts = [count for _, count in result.instance_counts]
    assert counts[0] == 1 and max(counts) == 4 and counts[-1] < 4
    assert 1.0 < result.average_instances < 4.0


def test_common_prefixes_are_computed_once() -> None:
    alone = [SimRequest(n, 3.0 * n, 2048, 5) for n in range(5)]
    shared = [replace(r, prefix_group=1, prefix_tokens=1600) for r in alone]
    setup = SimSetup(policy="load", instances=1)
    apart, together = simulate(setup, alone), simulate(setup, shared)
    assert together.requests[0].prefill_s == pytest.approx(apart.requests[0].prefill_s)
    for cached, full in zip(together.requests[1:], apart.requests[1:], strict=True):
        assert cached.prefill_s < full.prefill_s / 2
    without = simulate(replace(setup, prefix_caching=False), shared)
    assert without.requests[1].prefill_s == pytest.approx(apart.requests[1].prefill_s)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (SimRequest(0, 0.0, 13_000, 1000), "13616"),
        (SimRequest(0, -1.0, 10, 10), "arrival"),
        (SimRequest(0, 0.0, 0, 10), "tokens"),
    ],
)
def test_a_request_that_cannot_run_is_refused(request_: SimRequest, why: str) -> None:
    with pytest.raises(Exception, match=why):
        simulate(SMALL, [request_])
