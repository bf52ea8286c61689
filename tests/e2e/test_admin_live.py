"""The admin API of a real cluster under load: what it tells is true, and it tells what happens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.running import RunningCluster, http, wait_for
from tests.e2e.streams import Stream, Unread, row_of

NUM_REQUESTS = 4


@pytest.fixture
def loaded(cluster: RunningCluster) -> Iterator[list[Unread]]:
    """Requests that run on both instances for as long as the test takes."""
    asked = [Unread(cluster, f"load-{k}", 8000) for k in range(NUM_REQUESTS)]
    try:
        wait_for(lambda: len(cluster.requests()) == NUM_REQUESTS, 60, "all are listed")
        yield asked
    finally:
        for one in asked:
            one.close()
        wait_for(lambda: not cluster.requests(), 60, "none is left")


def items(cluster: RunningCluster, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.admin("GET", path)["items"]
    return found


def test_cluster_tells_its_counts_under_load(cluster: RunningCluster, loaded: list[Unread]) -> None:
    def counted() -> Any:
        now = cluster.admin("GET", "/v1/cluster")
        return (
            now
            if now["counts"]["requests_running"] == NUM_REQUESTS and now["totals"]["tokens_per_s"]
            else None
        )

    told = wait_for(counted, 60, "all are counted")
    assert (told["state"], told["model"], told["endpoint_url"]) == ("serving", "tiny", cluster.url)
    assert told["counts"]["instances"] == {"running": 2}
    assert (told["counts"]["nodes"], told["counts"]["api_servers"]) == (1, 1)
    assert told["totals"]["kv_blocks_total"] == sum(
        i["kv_blocks_total"] for i in cluster.instances().values()
    )
    assert told["totals"]["kv_blocks_used"] >= NUM_REQUESTS
    assert [p["name"] for p in told["priorities"]] == ["high", "normal"]
    [server] = told["api_servers"]
    assert (server["id"], server["state"], server["requests"]) == ("api0", "serving", NUM_REQUESTS)
    assert psutil.pid_exists(server["pid"])
    assert told["policies"]["scheduler"] == "llumnix+" and told["policies"]["dispatch"] == "backlog"
    assert cluster.admin("GET", "/v1/cluster")["uptime_s"] > told["uptime_s"] > 0


def test_instances_tell_their_load(cluster: RunningCluster, loaded: list[Unread]) -> None:
    wait_for(
        lambda: all(i["tokens_per_s"] > 0 and i["running"] == 2 for i in cluster.instances().values()),
        10,
        "both instances are busy",
    )
    before = cluster.instances()
    for instance in before.values():
        # 64 MiB of KV are 128 blocks of 128 tokens, of which vLLM keeps one for itself.
        assert (instance["block_size"], instance["kv_blocks_total"]) == (128, 127)
        assert 2 <= instance["kv_blocks_used"] < 127
        assert instance["step_ms"] > 0 and instance["uptime_s"] > 0 and instance["waiting"] == 0
        assert instance["priorities"] == [
            {"name": "normal", "running": 2, "waiting": 0, "kv_blocks": instance["kv_blocks_used"]}
        ]
        # Algorithm 1: free blocks per running request.
        free = instance["kv_blocks_total"] - instance["kv_blocks_used"]
        assert instance["freeness"] == pytest.approx(free / 2, abs=1)
        assert psutil.pid_exists(instance["pid"])
        assert cluster.admin("GET", f"/v1/instances/{instance['id']}")["pid"] == instance["pid"]
    assert before["i0"]["pid"] != before["i1"]["pid"]

    def grown() -> bool:
        now = cluster.instances()
        return all(now[key]["kv_blocks_used"] > before[key]["kv_blocks_used"] for key in now)

    wait_for(grown, 60, "both use more blocks, the longer their requests are")


def test_idle_instances_tell_that_they_are(cluster: RunningCluster) -> None:
    def idle() -> bool:
        return all(
            (i["running"], i["waiting"], i["kv_blocks_used"], i["tokens_per_s"]) == (0, 0, 0, 0)
            for i in cluster.instances().values()
        )

    wait_for(idle, 60, "nothing is held by nobody")
    assert all(i["freeness"] == i["kv_blocks_total"] for i in cluster.instances().values())


def test_requests_are_listed_with_their_growth(cluster: RunningCluster, loaded: list[Unread]) -> None:
    rows = {row["response_id"]: row for row in cluster.requests()}
    assert set(rows) == {one.id for one in loaded}
    for row in rows.values():
        assert (row["state"], row["priority"], row["api_server"]) == ("running", "normal", "api0")
        assert row["prompt_tokens"] == 5 and 0 <= row["output_tokens"] <= 7500 and row["kv_blocks"] >= 1
        assert abs(time.time() - row["arrived_at"] - row["age_s"]) < 5
    assert [row["arrived_at"] for row in cluster.requests()] == sorted(r["arrived_at"] for r in rows.values())

    def grown() -> bool:
        return all(
            row["output_tokens"] > rows[row["response_id"]]["output_tokens"] for row in cluster.requests()
        )

    wait_for(grown, 60, "all requests have more tokens")
    one = rows[loaded[0].id]["id"]
    assert cluster.admin("GET", f"/v1/requests/{one}")["id"] == one
    assert cluster.admin("GET", f"/v1/requests/{loaded[0].id}")["id"] == one
    assert cluster.admin_response("GET", "/v1/requests/cmpl-none").status_code == 404


def test_requests_are_filtered_and_paged(cluster: RunningCluster, loaded: list[Unread]) -> None:
    on_each = [cluster.requests(instance=instance) for instance in ("i0", "i1")]
    assert [len(rows) for rows in on_each] == [2, 2]
    assert cluster.requests(priority="high") == []
    seen: list[str] = []
    cursor = ""
    while cursor is not None:
        page = cluster.admin("GET", f"/v1/requests?limit=3{cursor and f'&cursor={cursor}'}")
        seen += [row["response_id"] for row in page["items"]]
        cursor = page["next"]
    assert sorted(seen) == sorted(one.id for one in loaded)


def test_node_tells_its_instances(cluster: RunningCluster) -> None:
    [node] = items(cluster, "/v1/nodes")
    assert (node["state"], node["head"], sorted(node["instances"])) == ("ready", True, ["i0", "i1"])
    assert {i["node"] for i in cluster.instances().values()} == {node["id"]}
    assert cluster.admin("GET", f"/v1/nodes/{node['id']}")["address"] == node["address"]


def test_drain_empties_the_instance_and_disturbs_no_request(cluster: RunningCluster) -> None:
    streams = [Stream(cluster, 2000) for _ in range(2)]
    assert {row_of(cluster, stream)["instance"] for stream in streams} == {"i0", "i1"}
    cluster.admin("POST", "/v1/instances/i0/drain", json={})
    try:
        assert cluster.instances()["i0"]["state"] in ("draining", "drained")
        wait_for(lambda: cluster.instances()["i0"]["state"] == "drained", 60, "i0 is drained")
        assert cluster.instances()["i0"]["safe_to_remove"]
        assert http.get(f"{cluster.admin_url}/readyz").status_code == 200, "maintenance is no fault"
        for stream in streams:
            stream.assert_undisturbed()
    finally:
        cluster.admin("POST", "/v1/instances/i0/uncordon")


def test_events_come_live_and_resume(cluster: RunningCluster) -> None:
    last = max(event["seq"] for event in items(cluster, "/v1/events?limit=1000"))
    heard: list[dict[str, Any]] = []
    listener = threading.Thread(target=listen, args=(cluster, last, 2, heard), daemon=True)
    listener.start()
    cluster.admin("POST", "/v1/instances/i1/cordon")
    cluster.admin("POST", "/v1/instances/i1/uncordon")
    listener.join(60)
    assert not listener.is_alive()
    assert all(event["seq"] > last and event["target"] == "instance/i1" for event in heard)
    again: list[dict[str, Any]] = []
    listen(cluster, heard[0]["seq"], 1, again)
    assert again[0] == heard[1]
    journal = [
        event for event in items(cluster, f"/v1/events?since={last}") if event["seq"] <= again[0]["seq"]
    ]
    assert journal == heard


def listen(cluster: RunningCluster, last_event_id: int, count: int, heard: list[dict[str, Any]]) -> None:
    """The next `count` events of the stream after one that was seen."""
    token = (cluster.state_dir / "admin.token").read_text().strip()
    headers = {"authorization": f"Bearer {token}", "last-event-id": str(last_event_id)}
    url = f"{cluster.admin_url}/v1/events/stream"
    with http.stream("GET", url, headers=headers, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                heard.append(json.loads(line.removeprefix("data:")))
            if len(heard) == count:
                return


def test_journal_tells_how_the_cluster_came_up(cluster: RunningCluster) -> None:
    events = items(cluster, "/v1/events?limit=1000")
    assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})
    for instance in ("i0", "i1"):
        kinds = [event["kind"] for event in events if event["target"] == f"instance/{instance}"]
        assert kinds[:3] == ["instance.added", "instance.placed", "instance.ready"]
    assert {"daemon.started", "apiserver.ready"} <= {event["kind"] for event in events}


def test_metrics_tell_the_instances_load(cluster: RunningCluster, loaded: list[Unread]) -> None:
    text = cluster.admin_response("GET", "/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    running = {
        s.labels["instance"]: s.value for s in samples if s.name == "llumnix_instance_running_requests"
    }
    assert running == {"i0": 2, "i1": 2}


def test_configuration_is_told_with_secrets_masked(cluster: RunningCluster) -> None:
    told = cluster.admin("GET", "/v1/config")
    assert told["http"]["port"] == cluster.config["http"]["port"]
    assert told["engine"]["kv_cache_memory_bytes"] == "64M" and told["instances"]["count"] == 2
    assert (cluster.state_dir / "admin.token").read_text().strip() not in json.dumps(told)


def test_probes_are_open_and_the_rest_is_not(cluster: RunningCluster) -> None:
    for path in ("/healthz", "/readyz"):
        assert http.get(f"{cluster.admin_url}{path}").status_code == 200
    for path in ("/v1/cluster", "/v1/requests", "/v1/config", "/metrics", "/v1/events/stream"):
        assert http.get(f"{cluster.admin_url}{path}").status_code == 401
    assert "/v1/instances" in http.get(f"{cluster.admin_url}/openapi.json").json()["paths"]
