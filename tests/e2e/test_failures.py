"""What hangs or crashes under load, or is killed while nobody looks: who notices, and that it comes back."""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import signal
import time
from collections.abc import Iterator

import httpx
import openai
import psutil
import pytest

from tests.e2e import breaker
from tests.e2e.running import RESTART_S, RunningCluster, running, settings, wait_for
from tests.e2e.streams import Stream, Unread, assert_comes_back, row_of, streams_on

HEARTBEAT_TIMEOUT_S = 12.0  # machines were seen to stand still for 9 s
NOTICED_S = 60.0  # tests/benchmarks measure how soon


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Two instances and two API servers, whose engines the tests' plugin can break."""
    directory = tmp_path_factory.mktemp("breakable")
    config = settings(
        directory / "state",
        http={"api_servers": 2, "drain_timeout_s": 60.0},
        instances={
            "count": 2,
            "heartbeat_timeout_s": HEARTBEAT_TIMEOUT_S,
            "restart_backoff_s": 0.1,
            "restart_limit": 100,
        },
    )
    with running(config, directory, env=breaker.environment(directory / "plugin")) as cluster:
        yield cluster


@pytest.fixture
def cluster(breakable: RunningCluster) -> RunningCluster:
    """The breakable cluster, whole again."""
    wait_for(lambda: set(breakable.serving()) == {"i0", "i1"}, RESTART_S, "both instances serve")
    wait_for(lambda: servers(breakable, "serving") == 2, RESTART_S, "both API servers serve")
    return breakable


def servers(cluster: RunningCluster, state: str) -> int:
    return sum(s["state"] == state for s in cluster.api_servers())


def test_stopped_process_is_found_by_its_silence_and_replaced(cluster: RunningCluster) -> None:
    before = cluster.instances()
    with streams_on(cluster, "instance", ["i0", "i1"]) as streams:
        psutil.Process(before["i0"]["pid"]).suspend()
        reason = hung(cluster, "i0", time.time())
        assert "no heartbeat" in reason
        streams["i0"].assert_goes_on()
        streams["i1"].assert_goes_on()
    assert_comes_back(cluster, "i0", before["i0"]["incarnation"])


@pytest.mark.parametrize("how", [breaker.block_loop, breaker.block_step])
def test_hung_engine_loop_is_found_and_replaced(cluster: RunningCluster, how: object) -> None:
    before = cluster.instances()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with streams_on(cluster, "instance", ["i0", "i1"]) as streams:
            since = time.time()
            call = pool.submit(breaker.tell, cluster, how, before["i1"]["pid"], 600)
            # Ties go round: should the streams end before the call is there, i1 has a step to take.
            more = [Unread(cluster, f"step-{k}", 8000) for k in range(4)]
            reason = hung(cluster, "i1", since)
            assert "has not come round" in reason and "of a CPU" in reason
            streams["i1"].assert_goes_on()
            streams["i0"].assert_goes_on()
            for one in more:
                one.close()
        call.result(60)  # the call that hung the loop is answered too
    assert_comes_back(cluster, "i1", before["i1"]["incarnation"])


def hung(cluster: RunningCluster, instance: str, since: float) -> str:
    """The journal's reason for taking an instance for hung; asserts that it was not too soon."""

    def found() -> list[dict[str, object]]:
        target = f"instance/{instance}"
        return [e for e in cluster.events("instance.hung") if e["target"] == target and e["time"] >= since]

    event = wait_for(found, HEARTBEAT_TIMEOUT_S + NOTICED_S, f"{instance} is taken for hung")[-1]
    message = str(event["message"])
    silence = re.search(r" for ([\d.]+) s", message)
    assert silence and float(silence[1]) >= HEARTBEAT_TIMEOUT_S, message
    return message


def test_busy_engine_loop_is_not_taken_for_hung(cluster: RunningCluster) -> None:
    before = cluster.instances()["i0"]
    with streams_on(cluster, "instance", ["i0"]) as streams:
        breaker.tell(cluster, breaker.spin_step, before["pid"], 2 * HEARTBEAT_TIMEOUT_S + 1)
        streams["i0"].assert_goes_on()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        long_prompts = [pool.submit(prefill, cluster, 8_000 + k) for k in range(8)]
        assert {future.result(120) for future in long_prompts} == {200}
    after = cluster.instances()["i0"]
    assert (after["incarnation"], after["state"]) == (before["incarnation"], "running")


def prefill(cluster: RunningCluster, num_tokens: int) -> int:
    body = {"model": "tiny", "prompt": [num_tokens % 97 + 5] * num_tokens, "max_tokens": 1}
    return httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=120).status_code


def test_crash_of_an_engine_is_shown_as_its_root_cause(cluster: RunningCluster) -> None:
    before = cluster.instances()["i0"]
    cause = "MemoryError: no room for the test's tensor"
    with streams_on(cluster, "instance", ["i0", "i1"]) as streams:
        breaker.tell(cluster, breaker.fail_step, before["pid"], "no room for the\n test's tensor")
        streams["i0"].assert_goes_on()
        streams["i1"].assert_goes_on()
    died = wait_for(
        lambda: [e["message"] for e in cluster.events("instance.died") if cause in e["message"]],
        10,
        "the journal says why",
    )
    assert died[0].startswith(cause) and "\n" not in died[0]
    wait_for(lambda: cause in cluster.output(), 60, "the terminal says why")
    assert "Traceback" not in cluster.output()
    assert "Traceback" in (cluster.state_dir / "logs" / "i0.log").read_text()
    assert_comes_back(cluster, "i0", before["incarnation"])


def test_killed_api_server_drags_nothing_along_and_is_replaced(cluster: RunningCluster) -> None:
    pids = {s["id"]: s["pid"] for s in cluster.api_servers()}
    with streams_on(cluster, "api_server", ["api0", "api1"]) as streams:
        psutil.Process(pids["api0"]).kill()
        streams["api0"].join(NOTICED_S)
        assert streams["api0"].error is not None

        def its_requests() -> bool:
            return any(row["api_server"] == "api0" for row in cluster.requests())

        wait_for(lambda: not its_requests(), NOTICED_S, "the instances abort its requests")
        streams["api1"].assert_goes_on()

    def is_replaced() -> bool:
        now = {s["id"]: s for s in cluster.api_servers()}["api0"]
        return now["state"] == "serving" and now["pid"] != pids["api0"]

    wait_for(is_replaced, RESTART_S, "a new API server takes the port")
    with streams_on(cluster, "api_server", ["api0"]) as streams:
        streams["api0"].assert_goes_on()


def test_api_servers_notice_a_death_while_llumnixd_stands_still(cluster: RunningCluster) -> None:
    before = cluster.instances()
    with streams_on(cluster, "instance", ["i0", "i1"]) as streams:
        with stopped(cluster):
            psutil.Process(before["i1"]["pid"]).kill()
            streams["i1"].assert_goes_on()
            for _ in range(4):
                Stream(cluster, 20).assert_undisturbed()
        streams["i0"].assert_goes_on()
    assert_comes_back(cluster, "i1", before["i1"]["incarnation"])


def test_api_servers_end_a_silent_instance_while_llumnixd_stands_still(cluster: RunningCluster) -> None:
    before = cluster.instances()
    silent = psutil.Process(before["i0"]["pid"])
    with streams_on(cluster, "instance", ["i0", "i1"]) as streams:
        with stopped(cluster):
            silent.suspend()
            streams["i0"].assert_goes_on()
            wait_for(lambda: not silent.is_running(), 60, "its process is ended")
        streams["i1"].assert_goes_on()
    assert_comes_back(cluster, "i0", before["i0"]["incarnation"])


@contextlib.contextmanager
def stopped(cluster: RunningCluster) -> Iterator[None]:
    cluster.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        cluster.process.send_signal(signal.SIGCONT)


def test_a_second_signal_stops_everything_at_once(cluster: RunningCluster) -> None:
    stream = Stream(cluster, 6000)
    row_of(cluster, stream)
    cluster.note_run()
    cluster.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in cluster.output(), 60, "llumnixd takes the first signal")
    with pytest.raises(openai.APIStatusError, match="shutting down"):
        cluster.client().completions.create(model="tiny", prompt="late", max_tokens=1)
    assert stream.is_alive() and stream.error is None
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(60) == 0
    assert cluster.leftovers() == []
    stream.join(60)
    assert not stream.is_alive()
