"""Messages of a control connection, msgpack with fixed types, and the address of an endpoint.

Order: Hello, Challenge, Begin, then Welcome or Refused; Notes while both data planes open; Ready; transfers.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

import msgspec

from llumnix.engine.transport.base import TransportError

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 1 << 16


class Address(msgspec.Struct, frozen=True):
    """Where an endpoint listens and what admits a peer; `uid` is new with every endpoint."""

    version: int
    transport: str
    uid: str
    family: Literal["unix", "tcp"]
    host: str
    port: int
    host_id: str
    secret: bytes
    fingerprint: bytes

    def __repr__(self) -> str:
        return f"Address({self.transport}, {self.uid}, {self.host}:{self.port})"


class Hello(msgspec.Struct, frozen=True, tag=True):
    """Sender to receiver, first."""

    version: int
    transport: str
    nonce: bytes


class Challenge(msgspec.Struct, frozen=True, tag=True):
    """Receiver's proof that it is the endpoint of that address."""

    nonce: bytes
    proof: bytes


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Sender's proof that it was told the address, and the shape of its staging."""

    proof: bytes
    fingerprint: bytes
    chunk_bytes: int
    num_slots: int


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """The receiver agrees; both sides now open their data planes."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The receiver does not agree, and closes the connection."""

    reason: str


class Note(msgspec.Struct, frozen=True, tag=True):
    """What one data plane tells the other; `num_fds` file descriptors travel beside it."""

    key: str
    value: bytes
    num_fds: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The receiver's data plane is open."""


class Offer(msgspec.Struct, frozen=True, tag=True):
    """A transfer begins; the connection's later messages call it by its number, which never comes again."""

    number: int
    transfer_id: str
    num_blocks: int


class Accept(msgspec.Struct, frozen=True, tag=True):
    """The receiver expects this transfer."""

    number: int


class Decline(msgspec.Struct, frozen=True, tag=True):
    """The receiver does not expect it, or not so."""

    number: int
    reason: str


class Staged(msgspec.Struct, frozen=True, tag=True):
    """A chunk is in the slot (shared memory) or on its way into it (gloo, nccl), in this order."""

    number: int
    index: int
    slot: int
    num_bytes: int


class Taken(msgspec.Struct, frozen=True, tag=True):
    """The receiver is done with the slot, whether it wanted the chunk or not."""

    number: int
    slot: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Either side gives a transfer up."""

    number: int
    reason: str


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Asks for a sign of life."""


class Pong(msgspec.Struct, frozen=True, tag=True):
    """Gives it."""


class Bye(msgspec.Struct, frozen=True, tag=True):
    """The sender closes an idle connection; the receiver lets go of the staging, then hangs up."""


Message = (
    Hello
    | Challenge
    | Begin
    | Welcome
    | Refused
    | Note
    | Ready
    | Offer
    | Accept
    | Decline
    | Staged
    | Taken
    | Stop
    | Ping
    | Pong
    | Bye
)

_encoder = msgspec.msgpack.Encoder()
_messages = msgspec.msgpack.Decoder(Message)
_addresses = msgspec.msgpack.Decoder(Address)


def encode(message: Message) -> bytes:
    """A length-prefixed frame; raises TransportError if it is too long to be taken."""
    body = _encoder.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise TransportError(f"a control message of {len(body)} bytes is too long.")
    return len(body).to_bytes(4, "little") + body


def decode(body: bytes) -> Message:
    """One frame's body; raises TransportError."""
    try:
        return _messages.decode(body)
    except msgspec.DecodeError as error:
        raise TransportError(f"the peer sent what is no control message: {error}.") from None


def encode_address(address: Address) -> bytes:
    """Bytes for the control channel between llumlets."""
    return _encoder.encode(address)


def decode_address(data: bytes) -> Address:
    """Raises TransportError for what is no address of this version."""
    try:
        address = _addresses.decode(data)
    except msgspec.DecodeError as error:
        raise TransportError(f"the peer's transport address cannot be read: {error}.") from None
    if address.version != PROTOCOL_VERSION:
        raise TransportError(
            f"the peer's transport speaks version {address.version}, this one {PROTOCOL_VERSION}."
        )
    return address


def proof(secret: bytes, role: bytes, *nonces: bytes) -> bytes:
    """What only a holder of the secret can answer to these nonces, different for each role."""
    return hmac.digest(secret, b"|".join((role, *nonces)), hashlib.sha256)
