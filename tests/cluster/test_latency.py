"""Percentiles of what API servers told lately."""

from llumnix.cluster.latency import WINDOW_S, LatencyWindow
from llumnix.wire import LatencySamples


def test_percentiles_are_those_of_all_api_servers_together() -> None:
    window = LatencyWindow()
    window.take(LatencySamples(0, tuple(n / 1000 for n in range(1, 51)), ()), now=10.0)
    window.take(LatencySamples(1, tuple(n / 1000 for n in range(51, 101)), (0.02,)), now=20.0)
    latency = window.latency(now=30.0)
    assert latency.ttft_ms is not None and latency.tpot_ms is not None
    assert (latency.ttft_ms.p50, latency.ttft_ms.p90, latency.ttft_ms.p99) == (50.0, 90.0, 99.0)
    assert latency.tpot_ms.p50 == latency.tpot_ms.p99 == 20.0


def test_what_is_older_than_the_window_counts_no_more() -> None:
    window = LatencyWindow()
    window.take(LatencySamples(0, (1.0,), ()), now=0.0)
    window.take(LatencySamples(0, (2.0,), ()), now=WINDOW_S / 2)
    latency = window.latency(now=WINDOW_S + 1)
    assert latency.ttft_ms is not None and latency.ttft_ms.p50 == 2000.0
    assert latency.tpot_ms is None
    assert window.latency(now=2 * WINDOW_S).ttft_ms is None
