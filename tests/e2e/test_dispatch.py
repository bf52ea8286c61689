"""Where requests go, and that a client which goes away takes its requests along."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.running import RunningCluster, http, wait_for
from tests.e2e.streams import Unread

WITHIN_S = 60.0  # the promise is 2 s; the machine may be busy


def num_running(cluster: RunningCluster) -> int:
    return sum(instance["running"] for instance in cluster.instances().values())


def test_requests_that_come_at_once_spread_over_the_instances(cluster: RunningCluster) -> None:
    asked = [Unread(cluster, f"spread-{k}", 8000) for k in range(8)]
    try:
        wait_for(lambda: num_running(cluster) == 8, WITHIN_S, "all run")
        assert {i["running"] for i in cluster.instances().values()} <= {3, 4, 5}
    finally:
        for one in asked:
            one.close()
    wait_for(lambda: num_running(cluster) == 0, WITHIN_S, "the engines have stopped them")
    wait_for(lambda: not cluster.requests(), WITHIN_S, "none is listed")


def test_long_prompt_sends_the_next_requests_elsewhere(cluster: RunningCluster) -> None:
    body = {"model": "tiny", "prompt": [7] * 6000, "max_tokens": 2000, "ignore_eos": True, "stream": True}
    others: list[Unread] = []
    with http.stream("POST", f"{cluster.url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        [large] = requests_when(cluster, 1)
        try:
            # 80 blocks are left beside the large one; the other instance has 127, then 126 per request.
            for count in (2, 3):
                others.append(Unread(cluster, f"small-{count}", 8000))
                requests_when(cluster, count)
            small = [row["instance"] for row in cluster.requests() if row["id"] != large["id"]]
            assert len(small) == 2 and large["instance"] not in small
        finally:
            for other in others:
                other.close()
    wait_for(lambda: not cluster.requests(), WITHIN_S, "none is listed")


def requests_when(cluster: RunningCluster, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = wait_for(
        lambda: now if len(now := cluster.requests()) == count else None,
        WITHIN_S,
        f"{count} requests are listed",
    )
    return found


@pytest.mark.parametrize("n", [1, 3])
def test_client_that_leaves_its_stream_aborts_the_request(cluster: RunningCluster, n: int) -> None:
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "n": n, "stream": True}
    with http.stream("POST", f"{cluster.url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # closing this would close the connection
        next(lines)
        wait_for(lambda: num_running(cluster) == n, WITHIN_S, "it runs")
        requests_when(cluster, n)
    wait_for(lambda: num_running(cluster) == 0, WITHIN_S, "the engines have stopped it")
    wait_for(lambda: not cluster.requests(), WITHIN_S, "it is listed no more")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_client_that_gives_up_waiting_aborts_the_request(cluster: RunningCluster, path: str) -> None:
    waiting = Unread(cluster, "impatient", 8000, path)
    wait_for(lambda: num_running(cluster) == 1, WITHIN_S, "it runs")
    waiting.close()
    wait_for(lambda: num_running(cluster) == 0, WITHIN_S, "the engine has stopped it")
    wait_for(lambda: not cluster.requests(), WITHIN_S, "it is listed no more")
