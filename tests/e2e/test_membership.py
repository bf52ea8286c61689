"""Instances that are added, drained, cordoned and removed while requests run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.running import RunningCluster, wait_for
from tests.e2e.streams import Stream, Unread, row_of, streams_on
from tests.e2e.workload import answers, bodies

START_S = 120.0


def is_in_state(cluster: RunningCluster, instance: str, *states: str) -> bool:
    return cluster.instances()[instance]["state"] in states


@pytest.fixture
def added(cluster: RunningCluster) -> Iterator[str]:
    """An instance beside those of the cluster, gone afterwards."""
    (instance,) = cluster.admin("POST", "/v1/instances", json={"count": 1})["ids"]
    wait_for(lambda: is_in_state(cluster, instance, "running"), START_S, "the new instance serves")
    yield instance
    if not is_in_state(cluster, instance, "dead"):
        cluster.admin("DELETE", f"/v1/instances/{instance}")
        wait_for(lambda: is_in_state(cluster, instance, "dead"), 60, "the new instance is gone")


def test_instances_join_drain_and_leave_without_disturbing_anybody(
    cluster: RunningCluster, added: str
) -> None:
    others = [i for i, item in cluster.instances().items() if item["state"] == "running" and i != added]
    with streams_on(cluster, "instance", [*others, added]) as streams:
        cluster.admin("POST", f"/v1/instances/{added}/drain")
        assert cluster.instances()[added]["state"] in ("draining", "drained")
        wait_for(lambda: is_in_state(cluster, added, "drained"), 60, "the instance is drained")
        assert cluster.instances()[added]["safe_to_remove"]
        assert row_of(cluster, streams[added])["instance"] in others
        late = Stream(cluster, 20)
        late.assert_undisturbed()
        for stream in streams.values():
            stream.assert_goes_on()
    moves = cluster.migrations("committed")
    assert any(m["source"] == added and "drained" in m["reason"] for m in moves)
    pid = cluster.instances()[added]["pid"]
    cluster.admin("DELETE", f"/v1/instances/{added}")
    wait_for(lambda: is_in_state(cluster, added, "dead"), 60, "the removed instance is dead")
    assert pid not in [process.pid for process in cluster.processes()]
    assert httpx.get(f"{cluster.admin_url}/readyz").status_code == 200


def test_requests_of_a_removed_instance_are_moved_before_it_ends(cluster: RunningCluster, added: str) -> None:
    def is_in_vllms_metrics() -> bool:
        return f'instance="{added}"' in httpx.get(f"{cluster.url}/metrics", timeout=60).text

    with streams_on(cluster, "instance", [added]) as streams:
        wait_for(is_in_vllms_metrics, 60, "vLLM's metrics of the new instance")
        cluster.admin("DELETE", f"/v1/instances/{added}")
        wait_for(lambda: is_in_state(cluster, added, "dead"), 60, "the removed instance is dead")
        streams[added].assert_goes_on()
    wait_for(lambda: not is_in_vllms_metrics(), 60, "they end with the instance")


async def test_what_is_left_when_a_machine_is_taken_away_is_resumed_elsewhere(
    cluster: RunningCluster, added: str
) -> None:
    requests = bodies(16, max_tokens=800)
    undisturbed = await answers(cluster, requests)
    answering = asyncio.create_task(answers(cluster, requests))

    def runs_there() -> bool:
        rows = [row for row in cluster.requests() if row["instance"] == added]
        return len(rows) >= 2 and all(row["output_tokens"] > 20 for row in rows)

    await asyncio.to_thread(wait_for, runs_there, 60, "requests run on the instance")
    # No time at all: nothing can be moved away before its engine is stopped.
    cluster.admin("POST", f"/v1/instances/{added}/terminate", json={"deadline_s": 0})
    resumed = await answering
    assert is_in_state(cluster, added, "dead")
    assert all(isinstance(got, tuple) for got in undisturbed), undisturbed
    assert resumed == undisturbed
    (timeout,) = [e for e in cluster.events("drain.timeout") if e["target"] == f"instance/{added}"]
    assert "running" in timeout["message"]


def test_cordoned_instance_gets_nothing_new_until_it_is_uncordoned(cluster: RunningCluster) -> None:
    with cluster.cordoned("i0"):
        asked = [Unread(cluster, f"cordon-{k}", 8000) for k in range(4)]
        rows = wait_for(lambda: now if len(now := cluster.requests()) == 4 else None, 60, "all are listed")
        assert {row["instance"] for row in rows} == {"i1"}
        for one in asked:
            one.close()
    with streams_on(cluster, "instance", ["i0"]) as streams:
        streams["i0"].assert_goes_on()


def test_uncordon_ends_a_drain(cluster: RunningCluster) -> None:
    # With nowhere to move its request to, the drain waits.
    with streams_on(cluster, "instance", ["i1"]) as streams, cluster.cordoned("i0"):
        cluster.admin("POST", "/v1/instances/i1/drain")
        assert is_in_state(cluster, "i1", "draining")
        cluster.admin("POST", "/v1/instances/i1/uncordon")
        assert is_in_state(cluster, "i1", "running")
        streams["i1"].assert_goes_on()
    with streams_on(cluster, "instance", ["i1"]) as streams:
        streams["i1"].assert_goes_on()


def test_drain_that_runs_out_of_time_names_what_was_in_the_way(cluster: RunningCluster) -> None:
    with (
        streams_on(cluster, "instance", ["i0"]) as streams,
        cluster.cordoned("i0"),
        cluster.cordoned("i1"),
    ):
        cluster.admin("POST", "/v1/instances/i0/drain", json={"timeout_s": 0.5})
        wait_for(lambda: is_in_state(cluster, "i0", "cordoned"), 60, "the drain gives up")
        view = cluster.instances()["i0"]
        assert "1 running" in view["blockers"][0] and "not empty after" in view["reason"]
        assert not view["safe_to_remove"]
        assert streams["i0"].is_alive()
    timeout = cluster.events("drain.timeout")[-1]
    assert timeout["target"] == "instance/i0" and "1 running" in timeout["message"]


def test_no_instance_open_to_requests_is_said_at_once(cluster: RunningCluster) -> None:
    with cluster.cordoned("i0"), cluster.cordoned("i1"):
        for path, body in (("/health", None), ("/v1/completions", {"model": "tiny", "prompt": "Once"})):
            method = "GET" if body is None else "POST"
            response = httpx.request(method, f"{cluster.url}{path}", json=body, timeout=60)
            assert response.status_code == 503, path
    assert httpx.get(f"{cluster.url}/health", timeout=60).status_code == 200
