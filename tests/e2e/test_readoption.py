"""A llumnixd that was killed or restarted takes over what runs: processes, requests, an operator's wishes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import httpx
import psutil

from llumnix.cluster import leftovers
from tests.e2e.moves import move
from tests.e2e.running import RunningCluster, launch, running, settings, to_toml, wait_for
from tests.e2e.streams import Stream, row_of, streams_on


def killed(cluster: RunningCluster) -> None:
    """As by `kill -9`; what it left behind is the business of whoever comes next."""
    cluster.note_run()
    cluster.process.kill()
    cluster.process.wait()
    cluster.process.returncode = 0


def pids(cluster: RunningCluster) -> dict[str, int]:
    servers = cluster.api_servers()
    of_instances = {key: item["pid"] for key, item in cluster.instances().items()}
    return of_instances | {server["id"]: server["pid"] for server in servers}


def messages(cluster: RunningCluster, kind: str) -> list[str]:
    return [event["message"] for event in cluster.events(kind)]


def test_kill_9_under_load_disturbs_no_request_and_the_next_llumnixd_goes_on(tmp_path: Path) -> None:
    config = settings(tmp_path / "state")
    with running(config, tmp_path / "first") as first, streams_on(first, "instance", ["i0", "i1"]) as streams:
        before = pids(first)
        killed(first)
        for stream in streams.values():
            stream.assert_goes_on()
        Stream(first, 20).assert_undisturbed()
        with running(config, tmp_path / "next") as following:
            assert pids(following) == before
            assert {i["restarts"] for i in following.instances().values()} == {0}
            assert len(messages(following, "instance.adopted")) == 2
            move(following, streams["i0"], "i1")
            streams["i0"].assert_goes_on()
            assert_its_settings_can_be_reloaded(following)
            for stream in streams.values():
                stream.assert_goes_on()
                stream.close()
        assert not any(psutil.pid_exists(pid) for pid in before.values())


def assert_its_settings_can_be_reloaded(cluster: RunningCluster) -> None:
    """SIGHUP: what can change does, the rest is named, and a file with a mistake changes nothing."""
    changes: dict[str, Any] = {
        "http": {**cluster.config["http"], "drain_timeout_s": 1.5, "max_queued": 7},
        "instances": {**cluster.config["instances"], "restart_limit": 3},
    }
    cluster.config_path.write_text(to_toml({**cluster.config, **changes}))
    cluster.process.send_signal(signal.SIGHUP)
    wait_for(lambda: messages(cluster, "config.reloaded"), 60, "llumnixd reads its file again")
    assert messages(cluster, "config.reloaded") == [
        "took on http.drain_timeout_s, instances.restart_limit; needs a restart: http.max_queued"
    ]
    in_force = cluster.admin("GET", "/v1/config")
    assert (in_force["http"]["drain_timeout_s"], in_force["http"]["max_queued"]) == (1.5, None)
    cluster.config_path.write_text("[http]\nport = 0\n")
    cluster.process.send_signal(signal.SIGHUP)
    wait_for(lambda: messages(cluster, "config.refused"), 60, "llumnixd refuses the file")
    assert "http.port" in messages(cluster, "config.refused")[0]


def test_what_changed_while_llumnixd_was_away_is_made_good(tmp_path: Path) -> None:
    """One instance dies meanwhile and is started again; the other stays as the operator left it."""
    config = settings(tmp_path / "state", instances={"count": 2, "restart_backoff_s": 0.1})
    with running(config, tmp_path / "first") as first:
        first.admin("POST", "/v1/instances/i1/cordon")
        before = pids(first)
        killed(first)
        dead = psutil.Process(before["i0"])
        dead.kill()
        dead.wait(10)
        following = launch(config, tmp_path / "next")
        try:
            wait_for(lambda: serves(following, "i0"), 120, "i0 serves again")
            now = following.instances()
            assert (now["i1"]["state"], now["i1"]["pid"]) == ("cordoned", before["i1"])
            assert now["i0"]["pid"] != before["i0"] and now["i0"]["incarnation"] == 2
            assert "while llumnixd was away" in messages(following, "instance.died")[0]
            Stream(following, 20).assert_undisturbed()
            assert following.stop() == 0, following.output()
            assert following.leftovers() == []
        finally:
            following.end()


def serves(cluster: RunningCluster, instance: str) -> bool:
    assert cluster.process.poll() is None, cluster.output()
    if not (cluster.state_dir / "admin.token").exists():
        return False
    try:
        return bool(cluster.instances()[instance]["state"] == "running")
    except (httpx.TransportError, KeyError):
        return False


def test_what_was_started_with_other_settings_is_drained_and_ended_with_the_reason(tmp_path: Path) -> None:
    config = settings(tmp_path / "state", instances={"count": 1}, http={"drain_timeout_s": 60.0})
    with running(config, tmp_path / "first") as first:
        before = pids(first)
        stream = Stream(first, 3000)
        row_of(first, stream)
        killed(first)
        config["engine"]["max_model_len"] = 4096
        with running(config, tmp_path / "next") as following:
            assert not any(psutil.pid_exists(pid) for pid in before.values())
            (reason,) = messages(following, "cluster.not_adopted")
            assert "engine.max_model_len changed" in reason
            stream.assert_undisturbed()
            Stream(following, 20).assert_undisturbed()


def test_llumnixd_beside_a_keeper_of_the_node_can_be_stopped_while_requests_run(tmp_path: Path) -> None:
    """As with systemd's two units: llumnixd restarts alone; the keeper's end drains and ends everything."""
    config = settings(tmp_path / "state", instances={"count": 1}, http={"drain_timeout_s": 60.0})
    keeper = launch(config, tmp_path / "keeper", "--head")
    try:
        wait_for(lambda: "llumnixd can start" in keeper.output(), 60, "the keeper's node is up")
        keeper.note_run()
        first = launch(config, tmp_path / "first")
        first.wait_ready()
        before = pids(first)
        stream = Stream(first, 6000)
        row_of(first, stream)
        assert first.stop() == 0, first.output()
        stream.assert_goes_on()
        following = launch(config, tmp_path / "next")
        following.wait_ready()
        assert pids(following) == before
        stream.assert_goes_on()
        assert following.stop() == 0, following.output()
        keeper.process.send_signal(signal.SIGTERM)
        stream.assert_undisturbed()
        assert keeper.process.wait(60) == 0, keeper.output()
        assert keeper.leftovers() == []
        assert leftovers.read_run(keeper.state_dir) is None
    finally:
        for cluster in (keeper, *(c for c in (locals().get("first"), locals().get("following")) if c)):
            cluster.end()


def test_llumnixd_ends_with_its_ray_node(tmp_path: Path) -> None:
    config = settings(tmp_path / "state", instances={"count": 1})
    cluster = launch(config, tmp_path)
    try:
        cluster.wait_ready()
        run = leftovers.read_run(cluster.state_dir)
        assert run is not None and run.node is not None
        psutil.Process(run.node["raylet_pid"]).kill()
        assert cluster.process.wait(60) == 1
        assert "The Ray node on this machine ended" in cluster.output()
        assert cluster.leftovers() == []
    finally:
        cluster.end()
