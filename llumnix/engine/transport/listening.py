"""Where an endpoint can be reached."""

from __future__ import annotations

import secrets
import socket
import uuid

from llumnix.engine.transport.base import TransportSettings
from llumnix.engine.transport.blocks import KVBlocks
from llumnix.engine.transport.messages import PROTOCOL_VERSION, Address
from llumnix.engine.transport.node import host_id

_BACKLOG = 64


def listen(
    transport: str, blocks: KVBlocks, settings: TransportSettings, family: str
) -> tuple[socket.socket, Address]:
    """Inside a node an abstract Unix socket, which leaves no file behind; else one on the given host."""
    uid = uuid.uuid4().hex
    if family == "unix":
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        host, port = f"llumnix-kv-{uid}", 0
        listener.bind("\0" + host)
        listener.listen(_BACKLOG)
    else:
        inet = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host, 0), family=inet, backlog=_BACKLOG)
        host, port = settings.host, listener.getsockname()[1]
    listener.setblocking(False)
    return listener, Address(
        version=PROTOCOL_VERSION,
        transport=transport,
        uid=uid,
        family="unix" if family == "unix" else "tcp",
        host=host,
        port=port,
        host_id=host_id(),
        secret=secrets.token_bytes(32),
        fingerprint=blocks.fingerprint,
    )
