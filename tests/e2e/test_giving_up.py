"""An instance that dies again and again is given up, and what is said while nothing serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.e2e.running import RunningCluster, running, settings, wait_for
from tests.e2e.streams import Stream, row_of

START_S = 120.0


def test_repeated_deaths_end_in_failed_and_a_new_instance_serves_again(tmp_path: Path) -> None:
    config = settings(
        tmp_path / "state", instances={"count": 1, "restart_limit": 1, "restart_backoff_s": 1.0}
    )
    with running(config, tmp_path) as cluster:
        psutil.Process(instance(cluster)["pid"]).kill()
        wait_for(lambda: instance(cluster)["state"] == "restarting", 60, "the death is noticed")
        assert "its process died; restarts in 1.0 s" in instance(cluster)["reason"]
        assert_nothing_serves(cluster)

        wait_for(lambda: instance(cluster)["state"] == "starting", START_S, "the restart")
        psutil.Process(instance(cluster)["pid"]).kill()
        wait_for(lambda: instance(cluster)["state"] == "failed", 60, "the instance is given up")
        reason = instance(cluster)["reason"]
        assert "died 2 times in a row" in reason and "last: its process died" in reason
        assert [event["message"] for event in cluster.events("instance.failed")] == [reason]
        assert_nothing_serves(cluster)
        assert cluster.admin("GET", "/v1/cluster")["state"] == "down"

        (added,) = cluster.admin("POST", "/v1/instances", json={"count": 1})["ids"]
        cluster.admin("DELETE", "/v1/instances/i0")
        wait_for(lambda: cluster.instances()[added]["state"] == "running", START_S, "the new instance serves")
        answer = cluster.client().completions.create(model="tiny", prompt="Once", max_tokens=4)
        assert answer.usage and answer.usage.completion_tokens
        assert cluster.admin_response("GET", "/readyz").status_code == 200


def test_streams_go_on_at_a_cordoned_instance_when_no_other_is_left(tmp_path: Path) -> None:
    config = settings(
        tmp_path / "state",
        instances={"count": 2, "restart_limit": 0},
        migration={"resume_timeout_s": 2.0},
    )
    with running(config, tmp_path) as cluster, cluster.cordoned("i1"):
        streams = [Stream(cluster, 5000) for _ in range(4)]
        assert {row_of(cluster, stream)["instance"] for stream in streams} == {"i0"}
        psutil.Process(instance(cluster)["pid"]).kill()
        wait_for(lambda: instance(cluster)["state"] == "failed", 60, "the instance is given up")
        assert_nothing_serves(cluster)
        assert cluster.instances()["i1"]["state"] == "cordoned"
        assert {row_of(cluster, stream)["instance"] for stream in streams} == {"i1"}
        for stream in streams:
            stream.assert_undisturbed(240)


def instance(cluster: RunningCluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.instances()["i0"]
    return found


def assert_nothing_serves(cluster: RunningCluster) -> None:
    asked = httpx.post(
        f"{cluster.url}/v1/completions", json={"model": "tiny", "prompt": "Once", "max_tokens": 4}, timeout=60
    )
    assert asked.status_code == 503 and "no instance serves" in asked.json()["error"]["message"]
    assert asked.headers["retry-after"]
    assert httpx.get(f"{cluster.url}/health", timeout=60).status_code == 503
    assert cluster.admin_response("GET", "/readyz").status_code == 503
