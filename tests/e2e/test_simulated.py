"""A live cluster of simulated instances: real processes, sockets and migrations; steps only take time."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.running import RunningCluster, running, settings, wait_for
from tests.e2e.streams import row_of, streams_on


def test_simulated_instances_serve_at_their_profiles_pace_and_requests_move_between_them(
    tmp_path: Path,
) -> None:
    config = settings(
        tmp_path / "state",
        engine={"simulated": "a10-llama-7b", "kv_cache_memory_bytes": "64M"},
        instances={"count": 3},
        # Every instance is asked for no CPU.
        ray={"num_cpus": 1},
    )
    with running(config, tmp_path) as cluster:
        assert {item["kv_blocks_total"] for item in cluster.instances().values()} == {851}
        assert_a_request_moves(cluster)


def assert_a_request_moves(cluster: RunningCluster) -> None:
    with streams_on(cluster, "instance", ["i0"]) as streams:
        request = row_of(cluster, streams["i0"])["id"]
        cluster.admin("POST", f"/v1/requests/{request}/migrate", json={"to": "i1"})
        wait_for(lambda: row_of(cluster, streams["i0"])["instance"] == "i1", 30, "the request is on i1")
        streams["i0"].assert_goes_on()
    committed = [
        migration
        for migration in cluster.admin("GET", "/v1/migrations?limit=1000")["items"]
        if migration["state"] == "committed"
    ]
    # Blocks of 16 tokens of 512 KiB each.
    assert committed and all(migration["bytes"] % (8 << 20) == 0 for migration in committed)
