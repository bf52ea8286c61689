"""A cluster of two Ray nodes that talk over TCP: a second node joins, serves, is drained and leaves."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from llumnix.cluster import leftovers
from llumnix.sockets import new_curve_keys
from tests.e2e.running import RunningCluster, free_port, launch, running, settings, wait_for
from tests.e2e.sockets_of import is_let_in, listening, on_loopback, zmq_mechanisms
from tests.e2e.streams import Stream, row_of, streams_on

START_S = 120.0


@dataclass
class TwoNodes:
    """The head's llumnixd, and that of the joined node, whose instance is `added`."""

    cluster: RunningCluster
    joined: RunningCluster
    added: str
    reason_before: str
    """Why `added` was pending while there was no node for it."""

    def node(self, *, head: bool) -> dict[str, Any]:
        nodes = self.cluster.admin("GET", "/v1/nodes")["items"]
        found: dict[str, Any] = next(n for n in nodes if n["head"] is head)
        return found

    def state(self, instance: str) -> str:
        return str(self.cluster.instances()[instance]["state"])


def join(cluster: RunningCluster, directory: Path) -> RunningCluster:
    """A further node on this machine: a state directory and a copy of the Ray token of its own."""
    state = directory / "state"
    state.mkdir(parents=True)
    shutil.copy(cluster.state_dir / "ray.token", state)
    config = {
        **cluster.config,
        "cluster": {**cluster.config["cluster"], "state_dir": str(state)},
        "ray": {"address": f"127.0.0.1:{cluster.config['ray']['port']}", "num_cpus": 1},
    }
    return launch(config, directory, "--join")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    directory = tmp_path_factory.mktemp("nodes")
    config = settings(
        directory / "state",
        cluster={"transport": "tcp"},
        ray={"num_cpus": 1, "port": free_port()},
        instances={"count": 1, "restart_backoff_s": 0.1},
    )
    with running(config, directory) as cluster:
        (added,) = cluster.admin("POST", "/v1/instances", json={"count": 1})["ids"]
        before = cluster.instances()[added]
        assert before["state"] == "pending", before
        joined = join(cluster, directory / "joined")
        try:
            wait_for(lambda: "joined" in joined.output(), START_S, "the node has joined")
            run = leftovers.read_run(joined.state_dir / "node")
            assert run is not None
            joined.run_ids.add(run.run_id)
            two = TwoNodes(cluster, joined, added, before["stage"])
            wait_for(lambda: two.state(added) == "running", START_S, "the new node's instance serves")
            yield two
        finally:
            joined.end()


def test_joined_node_gets_the_instance_that_had_no_place_and_serves_its_share(nodes: TwoNodes) -> None:
    assert "place" in nodes.reason_before
    joined, head = nodes.node(head=False), nodes.node(head=True)
    assert (joined["state"], joined["instances"]) == ("ready", [nodes.added])
    assert head["instances"] == ["i0"] and not head["safe_to_remove"]
    with streams_on(nodes.cluster, "instance", ["i0", nodes.added]) as streams:
        for stream in streams.values():
            stream.assert_goes_on()
    chat = nodes.cluster.client().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=8
    )
    assert chat.usage and chat.usage.completion_tokens


def test_nothing_listens_off_loopback_and_every_channel_of_ours_asks_for_curve(nodes: TwoNodes) -> None:
    found = listening(nodes.cluster) + listening(nodes.joined)
    assert [listener for listener in found if not on_loopback(listener.host)] == []
    # The manager's two, the API server's two, one for each instance's letters; all else is not ZMQ.
    assert list(zmq_mechanisms(listener.port for listener in found).values()) == ["CURVE"] * 6


def test_stranger_without_the_clusters_keys_gets_nothing_through(nodes: TwoNodes) -> None:
    ports = zmq_mechanisms(listener.port for listener in listening(nodes.cluster))
    assert len(ports) == 5
    for port in ports:
        assert not is_let_in(f"tcp://127.0.0.1:{port}", None)
        assert not is_let_in(f"tcp://127.0.0.1:{port}", new_curve_keys())
    Stream(nodes.cluster, 20).assert_undisturbed()


def test_requests_of_a_killed_api_server_are_aborted_over_tcp_too(nodes: TwoNodes) -> None:
    cluster = nodes.cluster
    (server,) = cluster.api_servers()
    with streams_on(cluster, "instance", ["i0", nodes.added]):
        psutil.Process(server["pid"]).kill()
        wait_for(
            lambda: not any(i["running"] for i in cluster.instances().values()),
            60,
            "its requests are aborted",
        )

    def replaced() -> bool:
        (now,) = cluster.api_servers()
        return now["state"] == "serving" and now["pid"] != server["pid"]

    wait_for(replaced, START_S, "a new API server serves")
    with streams_on(cluster, "instance", ["i0", nodes.added]) as streams:
        for stream in streams.values():
            stream.assert_goes_on()


def test_log_of_an_instance_on_another_node_is_read_there(nodes: TwoNodes) -> None:
    cluster, node = nodes.cluster, nodes.node(head=False)["id"]
    log = nodes.joined.state_dir / "logs" / f"{nodes.added}.log"
    assert not (cluster.state_dir / "logs" / log.name).exists()
    told = cluster.admin("GET", f"/v1/instances/{nodes.added}/log?lines=3")["lines"]
    assert len(told) == 3 and "\n".join(told) in log.read_text(errors="replace")
    listed = cluster.admin("GET", "/v1/logs")
    assert listed["others"] == [{"node": node, "names": [nodes.added, "llumnixd-node"], "error": ""}]
    assert {"i0", "api0", "llumnixd"} <= set(listed["names"])
    assert f"logs/{node}/{nodes.added}.log" in support_bundle(cluster)
    refused = cluster.admin_response("GET", f"/v1/logs/i99?node={node}")
    assert refused.status_code == 404 and refused.json()["error"]["message"].endswith(f"on node {node}")


def support_bundle(cluster: RunningCluster) -> set[str]:
    """The names of its parts."""
    path = cluster.state_dir / "bundle.tar.gz"
    token = cluster.state_dir / "admin.token"
    program = [sys.executable, "-c", "from llumnix.ctl.cli import main; main()"]
    session = ["--url", cluster.admin_url, "--token-file", str(token)]
    subprocess.run([*program, *session, "support-bundle", "--out", str(path)], check=True, timeout=120)
    with tarfile.open(path) as archive:
        return {member.name.split("/", 1)[1] for member in archive}


def test_node_that_stands_still_is_named_and_holds_nothing_up(nodes: TwoNodes) -> None:
    cluster, node = nodes.cluster, nodes.node(head=False)["id"]
    frozen = nodes.joined.processes()
    for process in frozen:
        process.suspend()
    try:
        answers = [cluster.admin_response("GET", f"/v1/instances/{nodes.added}/log") for _ in range(2)]
    finally:
        for process in frozen:
            process.resume()
    assert [answer.status_code for answer in answers] == [409, 409]
    messages = [answer.json()["error"]["message"] for answer in answers]
    assert messages == [
        f"node {node} did not answer within 5 s",
        f"node {node} has not answered for more than 5 s",
    ]

    def told() -> bool:
        return cluster.admin_response("GET", f"/v1/instances/{nodes.added}/log").status_code == 200

    wait_for(told, 60, "the log is read again")
    assert nodes.state(nodes.added) == "running"


def test_node_is_cordoned_and_drained_as_a_whole(nodes: TwoNodes) -> None:
    cluster, node = nodes.cluster, nodes.node(head=False)["id"]
    with streams_on(cluster, "instance", [nodes.added]) as streams:
        cluster.admin("POST", f"/v1/nodes/{node}/cordon")
        assert (nodes.state(nodes.added), nodes.node(head=False)["state"]) == ("cordoned", "cordoned")
        late = Stream(cluster, 7500)
        assert row_of(cluster, late)["instance"] == "i0"
        late.close()
        cluster.admin("POST", f"/v1/nodes/{node}/drain")
        wait_for(lambda: nodes.node(head=False)["state"] == "drained", 60, "the node is drained")
        assert nodes.node(head=False)["safe_to_remove"]
        streams[nodes.added].assert_goes_on()
    assert_nothing_is_placed_on_the_drained_node(nodes)
    cluster.admin("POST", f"/v1/nodes/{node}/uncordon")
    wait_for(lambda: nodes.state(nodes.added) == "running", START_S, "its instance serves there again")
    assert nodes.node(head=False)["instances"] == [nodes.added]


def assert_nothing_is_placed_on_the_drained_node(nodes: TwoNodes) -> None:
    """Its instance dies, and only there would be room for the next process."""
    psutil.Process(nodes.cluster.instances()[nodes.added]["pid"]).kill()
    wait_for(lambda: nodes.state(nodes.added) == "pending", 60, "the dead instance waits for a place")
    time.sleep(3.0)
    assert nodes.state(nodes.added) == "pending" and nodes.node(head=False)["safe_to_remove"]
    assert nodes.cluster.admin("GET", f"/v1/instances/{nodes.added}/log")["lines"], "of the dead one"
    moved = [e for e in nodes.cluster.events("instance.place_again") if e["target"].endswith(nodes.added)]
    assert moved == []


def test_node_that_leaves_takes_only_its_own_instances_along(nodes: TwoNodes) -> None:
    cluster = nodes.cluster
    with streams_on(cluster, "instance", ["i0", nodes.added]) as streams:
        nodes.joined.process.send_signal(signal.SIGTERM)
        streams[nodes.added].assert_goes_on()
        streams["i0"].assert_goes_on()
    assert nodes.joined.process.wait(60) == 0
    assert nodes.joined.leftovers() == []
    wait_for(lambda: nodes.state(nodes.added) == "pending", 60, "its instance waits for another place")
    assert nodes.state("i0") == "running"
    wait_for(
        lambda: [n["head"] for n in cluster.admin("GET", "/v1/nodes")["items"]] == [True], 60, "one node left"
    )
    refused = cluster.admin_response("GET", f"/v1/instances/{nodes.added}/log")
    assert refused.status_code == 404 and "logs of one that left" in refused.json()["error"]["message"]
