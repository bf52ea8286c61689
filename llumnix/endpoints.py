"""The addresses of a cluster's sockets: Unix sockets on one machine, TCP with CURVE between machines."""

from __future__ import annotations

import socket
from pathlib import Path

from llumnix.config import Config
from llumnix.sockets import new_curve_keys
from llumnix.wire import ApiServerAddress, ControlAddress, Endpoints, ipc_endpoints


def make_endpoints(config: Config, private_dir: Path) -> Endpoints:
    """`private_dir`: a directory with a short path that only our user can enter."""
    if config.transport == "ipc":
        return ipc_endpoints(private_dir, config.http.api_servers)
    ports = _free_ports(config.ray.node_ip, 2 + 2 * config.http.api_servers)
    addresses = [f"tcp://{config.ray.node_ip}:{port}" for port in ports]
    return Endpoints(
        control=ControlAddress(addresses[0], addresses[1]),
        api_servers=tuple(
            ApiServerAddress(k, addresses[2 + 2 * k], addresses[3 + 2 * k])
            for k in range(config.http.api_servers)
        ),
        private_dir=str(private_dir),
        curve=new_curve_keys(),
    )


def _free_ports(host: str, count: int) -> list[int]:
    """Ports that were free together a moment ago; whoever binds one finds out if it was taken since."""
    probes = []
    try:
        for _ in range(count):
            probe = socket.socket()
            probes.append(probe)
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
