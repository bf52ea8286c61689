"""A live cluster of simulated instances: real processes, sockets and migrations; steps only take time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llumnix import event_log
from llumnix.core.events import Record
from llumnix.core.scheduler import Scheduler
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
        scheduler={"record": str(tmp_path / "events")},
    )
    with running(config, tmp_path) as cluster:
        assert {item["kv_blocks_total"] for item in cluster.instances().values()} == {851}
        with streams_on(cluster, "instance", ["i0"]) as streams:
            moved = move(cluster, streams["i0"], "i1")
            streams["i0"].assert_goes_on()
        # Blocks of 16 tokens of 512 KiB each.
        assert moved["bytes"] > 0 and moved["bytes"] % (8 << 20) == 0
        cluster.admin("POST", "/v1/instances/i2/cordon")
        journal = cluster.admin("GET", "/v1/events?limit=1000")["items"]
    assert_the_record_gives_the_same_decisions(tmp_path / "events", journal)


def assert_the_record_gives_the_same_decisions(path: Path, journal: list[dict[str, Any]]) -> None:
    """What the scheduler said of instances in the live run it says again, word for word and in order."""
    recording = event_log.read(path)
    scheduler = Scheduler(recording.settings)
    again = [
        (action.kind, f"instance/{action.target}", action.message)
        for now, event in recording.events
        for action in scheduler.handle(event, now)
        if isinstance(action, Record)
    ]
    kinds = {kind for kind, _, _ in again}
    said = [(e["kind"], e["target"], e["message"]) for e in journal if e["kind"] in kinds]
    assert {"instance.ready", "instance.cordoned"} <= kinds
    assert again[: len(said)] == said
