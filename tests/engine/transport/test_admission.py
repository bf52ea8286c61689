"""Who may connect: only who was told the address, with the same version, transport and layout."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from llumnix.engine.transport import TransportError
from llumnix.engine.transport.messages import (
    MAX_MESSAGE_BYTES,
    Address,
    Begin,
    Bye,
    Challenge,
    Hello,
    Message,
    Offer,
    Refused,
    Welcome,
    decode,
    decode_address,
    encode,
    encode_address,
    proof,
)
from tests.engine.transport.conformance import ALL, moved, until
from tests.engine.transport.sides import QUICK, WAIT_S, Side

NONCE = b"n" * 16


class _Stranger:
    """Speaks to an endpoint by hand."""

    def __init__(self, address: Address) -> None:
        self.address = address
        if address.family == "unix":
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect("\0" + address.host)
        else:
            self._socket = socket.create_connection((address.host, address.port))
        self._socket.settimeout(WAIT_S)

    def __enter__(self) -> _Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def say(self, message: Message) -> None:
        self._socket.sendall(encode(message))

    def say_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def hear(self) -> Message | None:
        """None once the endpoint has hung up."""
        size = self._socket.recv(4, socket.MSG_WAITALL)
        if not size:
            return None
        return decode(self._socket.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL))

    def begin(self, **changes: object) -> Message | None:
        self.say(Hello(1, self.address.transport, NONCE))
        challenge = self.hear()
        assert isinstance(challenge, Challenge)
        own = proof(self.address.secret, b"sender", NONCE, challenge.nonce)
        self.say(msgspec.structs.replace(Begin(own, self.address.fingerprint, 4096, 2), **changes))
        return self.hear()


@pytest.fixture(params=["shm", "gloo"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    made = Side(request.param, 1)
    yield made
    made.close()


def test_a_peer_that_does_not_know_the_secret_is_refused(side: Side) -> None:
    with _Stranger(decode_address(side.address())) as stranger:
        answer = stranger.begin(proof=b"x" * 32)
        assert answer == Refused("the sender does not know the receiver's secret")
        assert stranger.hear() is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": b"other"}, "the two sides' KV cache layouts differ"),
        ({"chunk_bytes": 1 << 40}, f"chunks of {1 << 40} bytes are not taken"),
        ({"num_slots": 0}, "chunks of 4096 bytes are not taken"),
        ({"num_slots": 1 << 20}, "the sender asks for more staging than 268435456 bytes"),
    ],
)
def test_a_peer_that_does_not_fit_is_refused_with_the_reason(
    side: Side, changes: dict[str, object], reason: str
) -> None:
    with _Stranger(decode_address(side.address())) as stranger:
        assert stranger.begin(**changes) == Refused(reason)


def test_another_version_or_transport_is_refused(side: Side) -> None:
    address = decode_address(side.address())
    for hello, reason in (
        (Hello(2, address.transport, NONCE), "the receiver speaks version 1, not 2"),
        (Hello(1, "carrier", NONCE), f"the receiver's transport is {address.transport}, not carrier"),
    ):
        with _Stranger(address) as stranger:
            stranger.say(hello)
            assert stranger.hear() == Refused(reason)


@pytest.mark.parametrize(
    "data",
    [
        encode(Offer(1, "t", 1)),
        encode(Bye()),
        encode(Welcome()),
        b"\x04\x00\x00\x00junk",
        (MAX_MESSAGE_BYTES + 1).to_bytes(4, "little"),
    ],
)
def test_what_does_not_belong_ends_the_connection_and_nothing_else(side: Side, data: bytes) -> None:
    with _Stranger(decode_address(side.address())) as stranger:
        stranger.say_bytes(data)
        assert stranger.hear() is None
    side.settle()
    assert side.num_connections() == 0


def test_a_sender_sends_nothing_to_an_endpoint_that_does_not_know_its_own_secret(side: Side) -> None:
    other = Side(decode_address(side.address()).transport, 2)
    forged = msgspec.structs.replace(decode_address(other.address()), secret=b"wrong" * 6)
    side.send(encode_address(forged), "t", [1])
    assert side.wait("t") == ("failed", "the peer is not the endpoint whose address was given")
    other.close()


def test_addresses_that_cannot_work_are_refused_when_connecting(side: Side) -> None:
    address = decode_address(side.address())
    for changed, reason in (
        ({"version": 2}, "speaks version 2"),
        ({"transport": "carrier"}, "the peer's transport is carrier"),
        ({"fingerprint": b"other"}, "layouts differ"),
        ({"family": "unix", "host_id": "elsewhere"}, "works inside a node only"),
    ):
        with pytest.raises(TransportError, match=reason):
            side.endpoint.connect(encode_address(msgspec.structs.replace(address, **changed)))
    with pytest.raises(TransportError, match="cannot be read"):
        side.endpoint.connect(b"nonsense")
    assert address.secret.hex() not in repr(address) and repr(address.secret) not in repr(address)


def test_an_endpoint_that_is_gone_fails_the_transfer(side: Side) -> None:
    other = Side(decode_address(side.address()).transport, 2)
    address = other.address()
    other.close()
    side.send(address, "t", [1])
    assert side.wait("t") == ("failed", "the peer cannot be reached: Connection refused")


def test_bad_calls_are_refused_at_once(side: Side) -> None:
    side.receive("t", [1])
    with pytest.raises(TransportError, match="already under way"):
        side.endpoint.receive("t", [2], lambda *_: None)
    with pytest.raises(TransportError, match="outside"):
        side.endpoint.receive("u", [48], lambda *_: None)
    side.close()
    assert side.wait("t") == ("failed", "the transport was closed")
    with pytest.raises(TransportError, match="closed"):
        side.endpoint.receive("v", [2], lambda *_: None)


def test_an_expected_transfer_fails_when_no_sender_comes() -> None:
    side = Side("shm", 1, settings=replace(QUICK, offer_timeout_s=0.05))
    side.receive("t", [1])
    assert side.wait("t") == ("failed", "no sender came within 0.05 s")
    side.settle()
    side.close()


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_an_idle_connection_closes_and_the_next_transfer_opens_it_again(transport: str) -> None:
    a, b = (Side(transport, seed, settings=replace(QUICK, idle_close_s=0.05)) for seed in (1, 2))
    moved("one", a, b, ALL, ALL)
    for side in (a, b):
        until(lambda side=side: not side.num_connections())  # type: ignore[misc]
        assert side.staging_bytes() == 0
    moved("two", a, b, ALL, ALL)
    assert a.blocks() == b.blocks()
    for side in (a, b):
        side.close()
