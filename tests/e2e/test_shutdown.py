"""How a cluster ends: in good order, by aborting what takes too long, or killed and cleaned up after."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx

from llumnix.cluster import leftovers
from tests.e2e.running import RunningCluster, launch, running, settings, wait_for
from tests.e2e.streams import Stream, row_of


def send(cluster: RunningCluster, signal_number: signal.Signals) -> None:
    """The first signal, taken notice of."""
    cluster.note_run()
    cluster.process.send_signal(signal_number)
    wait_for(lambda: "stopping" in cluster.output(), 10, "llumnixd takes the signal")


def started_stream(cluster: RunningCluster, max_tokens: int) -> Stream:
    stream = Stream(cluster, max_tokens)
    row_of(cluster, stream)
    return stream


def test_next_start_cleans_up_after_a_kill_and_the_first_signal_lets_requests_finish(tmp_path: Path) -> None:
    config = settings(tmp_path / "state", instances={"count": 1}, http={"drain_timeout_s": 60.0})
    with running(config, tmp_path / "first") as first:
        assert_second_llumnixd_is_refused(first, tmp_path / "second")
        started_stream(first, 6000)
        first.process.kill()
        first.process.wait()
        assert first.processes(), "instances and API servers outlive llumnixd"

        with running(config, tmp_path / "next") as following:
            assert first.leftovers() == []
            assert len(following.events("daemon.started")) == 2
            stream = started_stream(following, 600)
            send(following, signal.SIGTERM)
            refused = httpx.post(
                f"{following.url}/v1/completions", json={"model": "tiny", "prompt": "late"}, timeout=20
            )
            assert refused.status_code == 503 and "shutting down" in refused.text
            stream.assert_undisturbed()
            assert following.process.wait(30) == 0
            assert following.leftovers() == []
            assert leftovers.read_run(following.state_dir) is None
        first.process.returncode = 0  # what is left to `running` is to look for what it left behind


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
        stream.join(10)
        stream.assert_failed("shut down before this request was finished")
        assert cluster.process.wait(30) == 0
        assert cluster.leftovers() == []
        assert leftovers.read_run(cluster.state_dir) is None
