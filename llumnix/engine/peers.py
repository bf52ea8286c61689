"""What llumlets say to each other, as frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from llumnix.core.handover.messages import PEER_MESSAGES, PeerMessageType
from llumnix.wire import PeerAddress


@dataclass(frozen=True, slots=True)
class Letter:
    """A message for a peer, and where that is."""

    peer: int
    address: PeerAddress
    message: PeerMessageType


_BY_NAME = {kind.__name__: kind for kind in PEER_MESSAGES}
_DECODERS: dict[str, msgspec.msgpack.Decoder[Any]] = {
    name: msgspec.msgpack.Decoder(kind) for name, kind in _BY_NAME.items()
}
_ADDRESS = msgspec.msgpack.Decoder(PeerAddress)


def to_frames(sender: int, sender_address: PeerAddress, message: Any) -> list[bytes]:
    """(uid, the sender's own address, the message's kind, the message)."""
    return [
        sender.to_bytes(4, "little"),
        msgspec.msgpack.encode(sender_address),
        type(message).__name__.encode(),
        msgspec.msgpack.encode(message),
    ]


def from_frames(frames: list[bytes]) -> Letter:
    """The letter with its sender as `peer`; raises KeyError or msgspec.ValidationError for anything else."""
    sender, address, kind, payload = frames
    message = _DECODERS[kind.decode()].decode(payload)
    return Letter(int.from_bytes(sender, "little"), _ADDRESS.decode(address), message)
