"""Who gets through the sockets of a cluster whose machines talk over TCP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from llumnix.sockets import guard, new_curve_keys, open_async_socket, open_socket
from tests.e2e.sockets_of import is_let_in

KEYS = new_curve_keys()
FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """Of a socket that is bound as those of the manager and the API servers are."""
    context = zmq.asyncio.Context()
    authenticator = guard(context, KEYS)
    assert authenticator is not None
    bound = open_async_socket(context, zmq.ROUTER, "tcp://127.0.0.1:0", bind=True, curve=KEYS)
    yield bound.getsockopt_string(zmq.LAST_ENDPOINT)
    bound.close()
    authenticator.stop()
    context.term()


def test_only_the_clusters_own_keys_are_let_in(address: str) -> None:
    assert is_let_in(address, KEYS)
    assert not is_let_in(address, None)
    assert not is_let_in(address, new_curve_keys())


def test_knowing_the_public_key_is_not_enough(address: str) -> None:
    stranger = new_curve_keys()
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.setsockopt_string(zmq.CURVE_PUBLICKEY, stranger.public)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, stranger.secret)
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, KEYS.public)
        with socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | FAILED) as monitor:
            socket.connect(address)
            assert monitor.poll(5_000)
            assert recv_monitor_message(monitor)["event"] == FAILED
            socket.disable_monitor()


def test_keys_are_not_shown() -> None:
    assert KEYS.secret not in f"{KEYS} {KEYS!r}"


def test_only_so_many_messages_wait_for_a_peer_that_is_away(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/away"
    with (
        zmq.Context() as context,
        open_socket(context, zmq.PUSH, address, bind=False, curve=None, send_limit=3) as sender,
    ):
        for text in (b"1", b"2", b"3"):
            sender.send(text)
        with pytest.raises(zmq.Again):
            sender.send(b"one too many")
        with open_socket(context, zmq.PULL, address, bind=True, curve=None) as receiver:
            assert receiver.poll(20_000)
            assert receiver.recv() == b"1"
