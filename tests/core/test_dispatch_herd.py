"""Several API servers on late reports spread their requests; without the means against it they herd."""

from __future__ import annotations

import pytest

from llumnix.core.dispatch import Dispatcher

from .herd import Load, simulate

LATENCIES = [(0.02, 0.02), (0.1, 0.1), (0.5, 0.5)]


def servers(rule: str, num: int, *, alone: bool = False) -> list[Dispatcher]:
    """`alone`: each believes to be the only one: its own sends count once, and all start at one instance."""
    return [
        Dispatcher(
            rule,
            headroom={},
            api_servers=1 if alone else num,
            server_index=0 if alone else index,
        )
        for index in range(num)
    ]


@pytest.mark.parametrize(("report_every_s", "report_late_s"), LATENCIES)
@pytest.mark.parametrize("num_servers", [2, 3, 4])
@pytest.mark.parametrize("rule", ["freeness", "load", "least_requests", "round_robin"])
def test_servers_spread_requests_evenly_on_late_reports(
    rule: str, num_servers: int, report_every_s: float, report_late_s: float
) -> None:
    load = Load(8, num_servers, report_every_s, report_late_s, duration_s=5.0)
    spread = simulate(load, servers(rule, num_servers))
    mean = load.rate_per_s * load.service_s / load.num_instances
    assert spread.ratio < 1.25
    assert spread.peak < 1.6 * mean
    assert spread.gap < 0.3 * mean


@pytest.mark.parametrize("num_servers", [2, 3, 4])
def test_control_servers_that_ignore_each_other_herd(num_servers: int) -> None:
    load = Load(8, num_servers, 0.5, 0.5, duration_s=10.0)
    spread = simulate(load, servers("freeness", num_servers))
    herd = simulate(load, servers("freeness", num_servers, alone=True))
    blind = simulate(load, servers("freeness", num_servers, alone=True), count_sent=False)
    assert herd.gap > 3 * spread.gap
    assert blind.gap > 6 * spread.gap


def test_the_spread_is_the_same_each_time() -> None:
    load = Load(num_servers=3, duration_s=3.0)
    assert simulate(load, servers("freeness", 3)) == simulate(load, servers("freeness", 3))
