"""Who gets through the sockets of a cluster whose machines talk over TCP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from llumnix.sockets import guard, new_curve_keys, open_async_socket
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
