"""ZMQ sockets of all cluster processes: unbounded, prompt about dead peers, with CURVE between hosts."""

from __future__ import annotations

from typing import Any

import zmq
import zmq.asyncio
from zmq.auth.thread import ThreadAuthenticator

from llumnix.wire import CurveKeys

_PEER_SILENCE_MS = 5_000
_RECONNECT_MS = 50


def open_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    address: str,
    *,
    bind: bool,
    curve: CurveKeys | None,
    identity: bytes | None = None,
    send_limit: int = 0,
) -> zmq.Socket[bytes]:
    """A bound or connected socket; closing it drops what it could not send.

    `send_limit`: messages that may wait for a peer that is away (0: any number); more raise zmq.Again.
    """
    socket = context.socket(kind)
    if send_limit:
        socket.setsockopt(zmq.SNDTIMEO, 0)
    socket.setsockopt(zmq.SNDHWM, send_limit)
    _open(socket, kind, address, bind, curve, identity)
    return socket


def open_async_socket(
    context: zmq.asyncio.Context,
    kind: int,
    address: str,
    *,
    bind: bool,
    curve: CurveKeys | None,
    identity: bytes | None = None,
) -> zmq.asyncio.Socket:
    """The same for an event loop, without a limit."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    _open(socket, kind, address, bind, curve, identity)
    return socket


def _open(
    socket: zmq.Socket[bytes] | zmq.asyncio.Socket,
    kind: int,
    address: str,
    bind: bool,
    curve: CurveKeys | None,
    identity: bytes | None,
) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    if identity is not None:
        socket.setsockopt(zmq.IDENTITY, identity)
    if kind == zmq.ROUTER:
        # A peer that comes back replaces its dead connection; sending to nobody is an error.
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if address.startswith("tcp://"):
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1_000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _PEER_SILENCE_MS)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    if curve is not None:
        socket.setsockopt_string(zmq.CURVE_PUBLICKEY, curve.public)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, curve.secret)
        if bind:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
        else:
            socket.setsockopt_string(zmq.CURVE_SERVERKEY, curve.public)
    if bind:
        socket.bind(address)
    else:
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.connect(address)


class _OnlyOurKey:
    """Lets in whoever proves to hold the cluster's key (ZAP, RFC 27)."""

    def __init__(self, public: str) -> None:
        self._public = public.encode()

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._public


def guard(
    context: zmq.asyncio.Context | zmq.Context[Any], curve: CurveKeys | None
) -> ThreadAuthenticator | None:
    """Make the CURVE sockets bound in `context` refuse strangers; stop() it before the context ends."""
    if curve is None:
        return None
    plain: zmq.Context[zmq.Socket[bytes]] = zmq.Context.shadow(context.underlying)
    authenticator = ThreadAuthenticator(plain)
    authenticator.start()
    authenticator.configure_curve_callback(domain="*", credentials_provider=_OnlyOurKey(curve.public))
    return authenticator


def new_curve_keys() -> CurveKeys:
    public, secret = zmq.curve_keypair()
    return CurveKeys(public.decode(), secret.decode())
