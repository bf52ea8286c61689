"""What the processes of a cluster listen at."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil
import zmq

from llumnix.sockets import open_socket
from llumnix.wire import CurveKeys
from tests.e2e.running import RunningCluster

HANDSHAKE_MS = 2_000
# A whole greeting would name a mechanism, and be hung up on where it is another.
ZMTP_GREETING = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03"


@dataclass(frozen=True)
class Listener:
    """One listening TCP socket, or a UDP socket, which takes whatever comes."""

    process: str
    host: str
    port: int


def listening(cluster: RunningCluster) -> list[Listener]:
    """All of them, of llumnixd, Ray, instances and API servers."""
    found = []
    for process in [psutil.Process(cluster.process.pid), *cluster.processes()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            name = process.name()
            found += [
                Listener(name, connection.laddr.ip, connection.laddr.port)
                for connection in process.net_connections(kind="inet")
                if connection.status == psutil.CONN_LISTEN
                or (connection.type == socket.SOCK_DGRAM and not connection.raddr)
            ]
    return found


def on_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def zmq_mechanisms(ports: Iterable[int]) -> dict[int, str]:
    """By port: the security mechanism that a ZMQ socket there asks for; ports of other kinds are left out."""
    distinct = sorted(set(ports))
    with ThreadPoolExecutor(len(distinct)) as pool:
        return {port: m for port, m in zip(distinct, pool.map(_zmq_mechanism, distinct), strict=True) if m}


def _zmq_mechanism(port: int) -> str | None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.settimeout(2)
        connection.sendall(ZMTP_GREETING)
        greeting = b""
        while len(greeting) < 32 and (part := connection.recv(64)):
            greeting += part
        if greeting[:1] == b"\xff" and greeting[9:10] == b"\x7f":
            return greeting[12:32].rstrip(b"\0").decode()
    return None


def is_let_in(address: str, curve: CurveKeys | None) -> bool:
    """Whether a ZMQ socket with these keys, and a message to bring, ends its handshake."""
    with (
        zmq.Context() as context,
        open_socket(context, zmq.DEALER, address, bind=False, curve=curve) as socket,
        socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor,
    ):
        socket.linger = 0
        socket.send(b"anything")
        let_in = bool(monitor.poll(HANDSHAKE_MS))
        socket.disable_monitor()
    return let_in
