"""A live cluster of simulated instances: real processes, sockets and migrations; steps only take time."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.moves import move
from tests.e2e.running import running, settings
from tests.e2e.streams import streams_on


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
        with streams_on(cluster, "instance", ["i0"]) as streams:
            moved = move(cluster, streams["i0"], "i1")
            streams["i0"].assert_goes_on()
        # Blocks of 16 tokens of 512 KiB each.
        assert moved["bytes"] > 0 and moved["bytes"] % (8 << 20) == 0
