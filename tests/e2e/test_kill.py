"""`kill -9` of an instance: its requests go on elsewhere, and it comes back."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.running import RESTART_S, RunningCluster, http, wait_for
from tests.e2e.streams import assert_comes_back, row_of, streams_on
from tests.e2e.workload import answers, bodies

PATIENCE_S = 180.0


@pytest.fixture
def whole(cluster: RunningCluster) -> RunningCluster:
    """The cluster with both instances in service."""
    wait_for(lambda: set(cluster.serving()) == {"i0", "i1"}, RESTART_S, "both instances serve")
    return cluster


def test_streams_of_a_killed_instance_go_on_elsewhere_as_the_operator_left_them(
    whole: RunningCluster,
) -> None:
    before = whole.instances()
    with streams_on(whole, "instance", ["i0", "i1"]) as streams:
        request = row_of(whole, streams["i0"])["id"]
        assert whole.admin("PATCH", f"/v1/requests/{request}", json={"priority": "high"})
        psutil.Process(before["i0"]["pid"]).kill()
        streams["i0"].assert_goes_on()
        wait_for(lambda: row_of(whole, streams["i0"])["instance"] == "i1", 60, "the request goes on at i1")
        assert row_of(whole, streams["i0"])["priority"] == "high"
        streams["i1"].assert_goes_on()
    assert_comes_back(whole, "i0", before["i0"]["incarnation"])
    died = [e["message"] for e in whole.events("instance.died") if e["target"] == "instance/i0"]
    assert "its process died" in died[0]


async def test_answers_are_the_same_though_their_instance_was_killed(whole: RunningCluster) -> None:
    requests = bodies(24, max_tokens=300)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        unstreamed = await asyncio.to_thread(complete, whole)
        expected = await answers(whole, requests)
        assert all(isinstance(answer, tuple) for answer in expected), expected
        at_once = [pool.submit(complete, whole) for _ in range(4)]
        asked = asyncio.create_task(answers(whole, requests))
        busiest = await asyncio.to_thread(wait_for, lambda: busy(whole), 60, "an instance is busy")
        psutil.Process(busiest["pid"]).kill()
        assert await asked == expected
        assert [future.result(PATIENCE_S) for future in at_once] == [unstreamed] * 4
    assert_comes_back(whole, busiest["id"], busiest["incarnation"])


def busy(cluster: RunningCluster) -> dict[str, Any] | None:
    """An instance that runs several requests; what it has no room for is held back."""
    return next((i for i in cluster.instances().values() if i["running"] >= 2), None)


def complete(cluster: RunningCluster) -> tuple[int, str]:
    """Status and text of an answer that comes in one piece."""
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 500, "ignore_eos": True, "temperature": 0}
    answer: httpx.Response = http.post(f"{cluster.url}/v1/completions", json=body, timeout=PATIENCE_S)
    return answer.status_code, answer.text if answer.is_error else answer.json()["choices"][0]["text"]
