"""How a cluster ends: in good order, or by aborting what takes too long."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx

from llumnix.cluster import leftovers
from tests.e2e.running import RunningCluster, launch, running, settings, wait_for
from tests.e2e.streams import Stream, row_of


def send(cluster: RunningCluster, signal_number: signal.Signals) -> None:
    """The first signal, taken notice of."""
    cluster.note_run()
    cluster.process.send_signal(signal_number)
    wait_for(lambda: "stopping" in cluster.output(), 60, "llumnixd takes the signal")


def started_stream(cluster: RunningCluster, max_tokens: int) -> Stream:
    stream = Stream(cluster, max_tokens)
    row_of(cluster, stream)
    return stream


def test_the_first_signal_lets_requests_finish(tmp_path: Path) -> None:
    config = settings(tmp_path / "state", instances={"count": 1}, http={"drain_timeout_s": 60.0})
    with running(config, tmp_path / "first") as cluster:
        assert_second_llumnixd_is_refused(cluster, tmp_path / "second")
        stream = started_stream(cluster, 3000)
        send(cluster, signal.SIGTERM)
        refused = httpx.post(
            f"{cluster.url}/v1/completions", json={"model": "tiny", "prompt": "late"}, timeout=60
        )
        assert refused.status_code == 503 and "shutting down" in refused.text
        stream.assert_undisturbed()
        assert cluster.process.wait(60) == 0
        assert cluster.leftovers() == []
        assert leftovers.read_run(cluster.state_dir) is None


def assert_second_llumnixd_is_refused(first: RunningCluster, directory: Path) -> None:
    second = launch(first.config, directory)
    assert second.process.wait(60) == 1
    output = second.output()
    assert f"pid {first.process.pid}" in output and len(output.splitlines()) == 1, output


def test_ctrl_c_aborts_what_does_not_finish_in_time(tmp_path: Path) -> None:
    config = settings(tmp_path / "state", instances={"count": 1}, http={"drain_timeout_s": 0.5})
    with running(config, tmp_path) as cluster:
        stream = started_stream(cluster, 6000)
        send(cluster, signal.SIGINT)
        stream.join(60)
        stream.assert_failed("shut down before this request was finished")
        assert cluster.process.wait(60) == 0
        assert cluster.leftovers() == []
        assert leftovers.read_run(cluster.state_dir) is None


def test_a_cluster_that_is_stopped_while_it_loads_ends_within_seconds(tmp_path: Path) -> None:
    cluster = launch(settings(tmp_path / "state", instances={"count": 1}), tmp_path)
    try:
        wait_for(lambda: "i0: " in cluster.output(), 60, "the instance is asked for")
        began = time.monotonic()
        send(cluster, signal.SIGTERM)
        assert cluster.process.wait(60) == 0, cluster.output()
        assert time.monotonic() - began < 15, cluster.output()  # its drain_timeout_s and more before
        assert cluster.leftovers() == []
    finally:
        cluster.end()
