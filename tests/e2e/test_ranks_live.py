"""Instances of two worker processes each: a running request moves between them, rank to rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.moves import move
from tests.e2e.running import running, settings
from tests.e2e.streams import streams_on

pytestmark = pytest.mark.load


@pytest.mark.timeout(900)
def test_a_stream_moves_between_instances_of_two_ranks(tmp_path: Path) -> None:
    config = settings(
        tmp_path / "state",
        engine={"tensor_parallel_size": 2},
        instances={"count": 2, "cpus_per_instance": 2, "heartbeat_timeout_s": 60.0},
    )
    # Else vLLM wants a NUMA node for each rank.
    with (
        running(config, tmp_path, env={"VLLM_CPU_OMP_THREADS_BIND": "nobind"}) as cluster,
        streams_on(cluster, "instance", ["i0"], max_tokens=4000) as streams,
    ):
        for to in ("i1", "i0"):
            moved = move(cluster, streams["i0"], to)
            assert moved["bytes"] > 0
            streams["i0"].assert_goes_on()
