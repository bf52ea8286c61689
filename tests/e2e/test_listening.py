"""What a running cluster listens at, against the architecture: loopback and private sockets only."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.e2e.running import RunningCluster
from tests.e2e.sockets_of import listening, on_loopback, zmq_mechanisms


def test_nothing_listens_off_loopback(cluster: RunningCluster) -> None:
    found = listening(cluster)
    assert [listener for listener in found if not on_loopback(listener.host)] == []
    ours = {listener.port for listener in found}
    assert {cluster.config["http"]["port"], cluster.config["admin"]["port"]} <= ours


def test_inside_one_machine_no_channel_of_ours_is_a_tcp_port(cluster: RunningCluster) -> None:
    assert zmq_mechanisms(listener.port for listener in listening(cluster)) == {}


def test_unix_sockets_lie_in_directories_that_only_our_user_can_enter(cluster: RunningCluster) -> None:
    addresses = {
        connection.laddr
        for process in [psutil.Process(cluster.process.pid), *cluster.processes()]
        for connection in process.net_connections(kind="unix")
        if connection.laddr
    }
    # These have no directory: the KV transports', which hang up on whoever does not know their secret.
    abstract = {address for address in addresses if address.startswith("@llumnix-kv-")}
    assert len(abstract) == 2
    paths = {Path(address) for address in addresses - abstract}
    (run_id,) = cluster.run_ids
    private = Path(f"/tmp/llx-{run_id}")
    assert {path.name for path in paths} >= {"ctl.cmd", "ctl.news", "api0.in", "api0.out"}
    assert [path for path in paths if private not in path.parents] == []
    assert private.stat().st_mode & 0o077 == 0


def test_rays_ports_let_nobody_in_without_the_token(
    cluster: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grpc")
    import grpc

    heads = [listener for listener in listening(cluster) if listener.process == "gcs_server"]
    assert heads
    for head in heads:
        with grpc.insecure_channel(f"127.0.0.1:{head.port}") as channel:
            call = channel.unary_unary(
                "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
                request_serializer=bytes,
                response_deserializer=bytes,
            )
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=60)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
