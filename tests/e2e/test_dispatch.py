"""Where requests go, and that a client which goes away takes its requests along."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.running import RunningCluster, http, wait_for
from tests.e2e.streams import Unread

GONE_S = 5.0  # the promise is 2 s; the machine may be busy


def items(cluster: RunningCluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.admin("GET", "/v1/requests?limit=1000")["items"]
    return found


def num_running(cluster: RunningCluster) -> int:
    return sum(instance["running"] for instance in cluster.instances().values())


def test_requests_that_come_at_once_spread_over_the_instances(cluster: RunningCluster) -> None:
    asked = [Unread(cluster, f"spread-{k}", 8000) for k in range(8)]
    try:
        wait_for(lambda: num_running(cluster) == 8, 20, "all run")
        assert {i["running"] for i in cluster.instances().values()} <= {3, 4, 5}
    finally:
        for one in asked:
            one.close()
    wait_for(lambda: num_running(cluster) == 0, GONE_S, "the engines have stopped them")
    wait_for(lambda: not items(cluster), GONE_S, "none is listed")


def test_long_prompt_sends_the_next_requests_elsewhere(cluster: RunningCluster) -> None:
    body = {"model": "tiny", "prompt": [7] * 6000, "max_tokens": 2000, "ignore_eos": True, "stream": True}
    others: list[Unread] = []
    with http.stream("POST", f"{cluster.url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        [large] = items_when(cluster, 1)
        try:
            # 80 blocks are left beside the large one; the other instance has 127, then 126 per request.
            for count in (2, 3):
                others.append(Unread(cluster, f"small-{count}", 8000))
                items_when(cluster, count)
            small = [row["instance"] for row in items(cluster) if row["id"] != large["id"]]
            assert len(small) == 2 and large["instance"] not in small
        finally:
            for other in others:
                other.close()
    wait_for(lambda: not items(cluster), GONE_S, "none is listed")


def items_when(cluster: RunningCluster, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = wait_for(
        lambda: now if len(now := items(cluster)) == count else None, 5, f"{count} requests are listed"
    )
    return found


@pytest.mark.parametrize("n", [1, 3])
def test_client_that_leaves_its_stream_aborts_the_request(cluster: RunningCluster, n: int) -> None:
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 8000, "ignore_eos": True, "n": n, "stream": True}
    with http.stream("POST", f"{cluster.url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # closing this would close the connection
        next(lines)
        wait_for(lambda: num_running(cluster) == n, 10, "it runs")
        items_when(cluster, n)
    wait_for(lambda: num_running(cluster) == 0, GONE_S, "the engines have stopped it")
    wait_for(lambda: not items(cluster), GONE_S, "it is listed no more")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_client_that_gives_up_waiting_aborts_the_request(cluster: RunningCluster, path: str) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    body: dict[str, Any] = {"model": "tiny", "max_tokens": 8000, "ignore_eos": True}
    body |= {"messages": messages} if "chat" in path else {"prompt": "Once"}
    with ThreadPoolExecutor(1) as pool:
        impatient = pool.submit(http.post, f"{cluster.url}{path}", json=body, timeout=2)
        wait_for(lambda: num_running(cluster) == 1, 10, "it runs")
        with pytest.raises(httpx.ReadTimeout):
            impatient.result()
    wait_for(lambda: num_running(cluster) == 0, GONE_S, "the engine has stopped it")
    wait_for(lambda: not items(cluster), GONE_S, "it is listed no more")
