"""Our own Ray nodes: real Ray processes on 127.0.0.1, shared by the tests of this module."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from llumnix.cluster import leftovers, ray_driver, ray_node
from llumnix.config.cluster import TEMP_DIR_MAX_BYTES
from llumnix.errors import LlumnixError, StartupError

TOKEN = "0123456789abcdef" * 4
GRACE_S = 5.0

# One method of each service that runs code for its caller; the health check alone is open to all.
GUARDED_CALLS = [
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Push",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
]


def start_head(**changes) -> ray_node.RayNode:
    run = leftovers.new_run()
    arguments = {
        "temp_dir": Path(run.temp_dir),
        "node_ip": "127.0.0.1",
        "port": None,
        "num_cpus": 2,
        "num_gpus": 0,
        "dashboard": False,
        "token": TOKEN,
        "run_id": run.run_id,
        "env": {"LLUMNIX_TEST_SETTING": "reaches workers"},
    }
    return ray_node.start_head(**(arguments | changes))


def join(address: str, run: leftovers.RunRecord, token: str = TOKEN) -> ray_node.RayNode:
    return ray_node.join(
        address=address,
        temp_dir=Path(run.temp_dir),
        node_ip="127.0.0.1",
        num_cpus=1,
        num_gpus=0,
        token=token,
        run_id=run.run_id,
        env={},
    )


def nothing_is_left_of(run_id: str) -> bool:
    directories = (Path("/tmp") / f"llx-{run_id}", leftovers.shm_dir(run_id))
    return leftovers.find(run_id) == [] and not any(directory.exists() for directory in directories)


@pytest.fixture(scope="module")
def head() -> Iterator[ray_node.RayNode]:
    """A head that this process is a driver of; to connect leaves its signal handlers alone."""
    with pytest.MonkeyPatch.context() as shell:
        shell.setenv("RAY_ADDRESS", "203.0.113.7:6379")
        shell.setenv("RAY_AUTH_TOKEN", "f" * 64)
        node = start_head()
    handlers = _signal_handlers()
    try:
        ray_driver.connect(node, "llumnix-test")
        assert _signal_handlers() == handlers
        yield node
    finally:
        ray_driver.disconnect()
        ray_node.stop(node, GRACE_S)
    assert nothing_is_left_of(node.run_id)


@pytest.fixture(scope="module")
def actor(head: ray_node.RayNode):
    """A detached actor that tells about its own process."""
    import ray

    class Witness:
        def __init__(self) -> None:
            self.child = subprocess.Popen(["sleep", "300"])

        def facts(self) -> dict[str, object]:
            oom_score = int(Path("/proc/self/oom_score_adj").read_text())
            setting = os.environ["LLUMNIX_TEST_SETTING"]
            return {
                "pid": os.getpid(),
                "child": self.child.pid,
                "nice": os.nice(0),
                "oom": oom_score,
                "setting": setting,
            }

    handle = ray.remote(num_cpus=1)(Witness).options(name="witness", lifetime="detached").remote()
    ray.get(handle.facts.remote())
    return handle


def facts_of(actor) -> dict[str, object]:
    import ray

    return ray.get(actor.facts.remote())


def listeners(process: psutil.Process) -> list[tuple[str, int]]:
    sockets = process.net_connections("inet")
    return [
        (s.laddr.ip.removeprefix("::ffff:"), s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN
    ]


def test_all_processes_of_the_node_carry_its_marker_down_to_children_of_workers(head, actor) -> None:
    facts = facts_of(actor)
    found = {process.pid for process in leftovers.find(head.run_id)}
    assert {head.gcs_pid, head.raylet_pid, facts["pid"], facts["child"]} <= found
    raylets_children = {child.pid for child in psutil.Process(head.raylet_pid).children(recursive=True)}
    assert found == raylets_children | {head.gcs_pid, head.raylet_pid}


def test_only_the_processes_that_ray_insists_on_run(head, actor) -> None:
    facts = facts_of(actor)
    others = {process.pid for process in leftovers.find(head.run_id)} - {facts["pid"], facts["child"]}
    agents = others - {head.gcs_pid, head.raylet_pid}
    assert len(agents) == 2, "the dashboard agent and the runtime environment agent"
    assert all(psutil.Process(pid).ppid() == head.raylet_pid for pid in agents)


def test_nothing_of_a_loopback_node_listens_elsewhere(head, actor) -> None:
    processes = [*leftovers.find(head.run_id), psutil.Process()]
    listening = {process.pid: listeners(process) for process in processes}
    assert {ip for sockets in listening.values() for ip, _ in sockets} == {"127.0.0.1"}
    assert len(listening[head.gcs_pid]) == 1
    assert len(listening[head.raylet_pid]) == 2, "node manager, object manager"
    assert len(listening[facts_of(actor)["pid"]]) == 1


@pytest.mark.parametrize("metadata", [None, [("authorization", "Bearer " + "f" * 64)]], ids=["none", "wrong"])
def test_every_ray_service_refuses_callers_without_the_token(head, actor, metadata) -> None:
    actor_pid = facts_of(actor)["pid"]
    refused: set[str] = set()
    for pid in (head.gcs_pid, head.raylet_pid, actor_pid, os.getpid()):
        for ip, port in listeners(psutil.Process(pid)):
            refused |= calls_refused(f"{ip}:{port}", metadata)
    assert refused == set(GUARDED_CALLS)


def calls_refused(target: str, metadata: list[tuple[str, str]] | None) -> set[str]:
    """Those of GUARDED_CALLS that the server at `target` refuses; the others it must not know at all."""
    refused = set()
    with grpc.insecure_channel(target) as channel:
        for method in GUARDED_CALLS:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"", timeout=10, metadata=metadata)
            assert caught.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
            if caught.value.code() is grpc.StatusCode.UNAUTHENTICATED:
                refused.add(method)
    return refused


def test_the_same_call_with_the_token_is_answered(head) -> None:
    with grpc.insecure_channel(head.address) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
        assert call(b"", timeout=10, metadata=[("authorization", f"Bearer {TOKEN}")])


def test_the_runtime_environment_agent_refuses_callers_without_the_token(head, actor) -> None:
    agents = [p for p in psutil.Process(head.raylet_pid).children() if p.pid != facts_of(actor)["pid"]]
    (socket_of_agent,) = [address for agent in agents for address in listeners(agent)]
    url = "http://{}:{}/get_runtime_envs_info".format(*socket_of_agent)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, data=b"", timeout=10)
    assert caught.value.code == 401


def test_the_token_is_in_a_private_file_and_in_no_argument_or_environment(head, actor) -> None:
    assert stat.S_IMODE(head.temp_dir.stat().st_mode) == 0o700, (
        "Ray itself makes its directories writable for all"
    )
    assert stat.S_IMODE(head.token_path.stat().st_mode) == 0o600
    assert head.token_path.read_text() == TOKEN
    for process in leftovers.find(head.run_id):
        for name in ("cmdline", "environ"):
            assert TOKEN.encode() not in Path(f"/proc/{process.pid}/{name}").read_bytes()


def test_workers_are_neither_slowed_nor_singled_out_for_killing(head, actor) -> None:
    facts = facts_of(actor)
    assert facts["nice"] == os.nice(0)
    assert facts["oom"] == int(Path("/proc/self/oom_score_adj").read_text())
    assert "MemoryMonitor disabled" in (head.logs_dir / "raylet.out").read_text()


def test_the_given_environment_reaches_workers_and_a_shells_ray_settings_do_not(head, actor) -> None:
    assert facts_of(actor)["setting"] == "reaches workers"
    for pid in (head.raylet_pid, facts_of(actor)["pid"]):
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"203.0.113.7" not in environment
        assert b"RAY_AUTH_TOKEN=" not in environment


def test_a_terminals_ctrl_c_reaches_no_ray_process(head, actor) -> None:
    own_session = os.getsid(0)
    for process in leftovers.find(head.run_id):
        assert os.getsid(process.pid) != own_session


def _signal_handlers() -> tuple[object, object]:
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


def test_a_further_node_joins_and_leaves_with_everything_it_brought(head) -> None:
    import ray

    run = leftovers.new_run()
    node = join(head.address, run)
    try:
        assert node.gcs_pid is None
        assert {n["NodeID"] for n in ray.nodes() if n["Alive"]} == {head.node_id, node.node_id}
        addresses = {ip for process in leftovers.find(run.run_id) for ip, _ in listeners(process)}
        assert addresses == {"127.0.0.1"}
    finally:
        ended = ray_node.stop(node, GRACE_S)
    assert not any(leftover.killed for leftover in ended)
    assert nothing_is_left_of(run.run_id)
    assert psutil.pid_exists(head.raylet_pid)


def test_joining_with_a_wrong_token_is_refused_in_one_sentence(head) -> None:
    run = leftovers.new_run()
    with pytest.raises(StartupError, match="token is missing or incorrect") as caught:
        join(head.address, run, token="f" * 64)
    assert "\n" not in str(caught.value)
    assert nothing_is_left_of(run.run_id)


def test_joining_where_no_head_answers_fails_at_once(unused_port: int) -> None:
    run = leftovers.new_run()
    with pytest.raises(StartupError, match=f"127.0.0.1:{unused_port}"):
        join(f"127.0.0.1:{unused_port}", run)
    assert nothing_is_left_of(run.run_id)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_taken_port_is_named_and_nothing_is_left_running() -> None:
    run = leftovers.new_run()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"port {port} .* in use"):
            start_head(run_id=run.run_id, temp_dir=Path(run.temp_dir), port=port)
    assert nothing_is_left_of(run.run_id)


def test_a_head_that_dies_while_starting_gives_its_own_reason_and_leaves_nothing() -> None:
    run = leftovers.new_run()
    with pytest.raises(StartupError, match="Unsupported GCS storage type: nonsense") as caught:
        start_head(run_id=run.run_id, temp_dir=Path(run.temp_dir), env={"RAY_gcs_storage": "nonsense"})
    assert "\n" not in str(caught.value)
    assert nothing_is_left_of(run.run_id)


@pytest.mark.parametrize(
    ("node_ip", "complaint"),
    [
        ("203.0.113.7", "no address of this machine"),
        ("127.0.0.2", "only as 127.0.0.1"),
        ("localhost", "numeric"),
    ],
)
def test_an_address_ray_cannot_keep_to_is_refused(node_ip: str, complaint: str) -> None:
    with pytest.raises(StartupError, match=complaint):
        start_head(node_ip=node_ip)


def test_a_directory_too_long_for_unix_sockets_is_refused(tmp_path: Path) -> None:
    temp_dir = tmp_path / ("x" * 60)
    with pytest.raises(StartupError, match=f"{temp_dir}.* too long"):
        start_head(temp_dir=temp_dir)
    assert not temp_dir.exists()


def test_the_longest_directory_that_the_file_may_name_leaves_room_for_a_run() -> None:
    longest = "/" + "x" * (TEMP_DIR_MAX_BYTES - 1)
    ray_node._require_short(Path(leftovers.new_run(Path(longest)).temp_dir))
    with pytest.raises(StartupError, match="1 bytes too long"):
        ray_node._require_short(Path(leftovers.new_run(Path(longest + "x")).temp_dir))


def test_a_directory_that_exists_is_not_taken_over(tmp_path: Path) -> None:
    run = leftovers.new_run()
    temp_dir = Path(run.temp_dir)
    temp_dir.mkdir()
    (temp_dir / "precious").touch()
    try:
        with pytest.raises(StartupError, match="File exists"):
            start_head(temp_dir=temp_dir, run_id=run.run_id)
        assert (temp_dir / "precious").exists()
    finally:
        (temp_dir / "precious").unlink()
        temp_dir.rmdir()


def test_connecting_to_a_cluster_that_is_gone_fails_at_once(unused_port: int) -> None:
    gone = ray_node.RayNode(
        address=f"127.0.0.1:{unused_port}",
        node_ip="127.0.0.1",
        node_id="",
        temp_dir=Path("/nonexistent"),
        logs_dir=Path("/nonexistent"),
        run_id="",
        raylet_pid=0,
        gcs_pid=None,
    )
    with pytest.raises(LlumnixError, match="No Ray head answers"):
        ray_driver.connect(gone, "llumnix-test")
