"""What source and target tell each other, and what they tell the API server that owns the request.

Fixed types that msgpack knows. On the wire a frame with the class's name stands in front of each message,
see PEER_MESSAGES and NOTICES. Blocks are numbered within the request, from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.core.handover.epochs import Epoch, engine_id

# ---- source to target -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepare:
    """May this request come? Answered by Ack or Refuse."""

    migration: str
    request_id: str
    epoch: Epoch
    """The one it will run under at the target."""
    owner: int
    """Index of the API server."""
    priority: int
    adapter: str
    """LoRA adapter; "" for none."""
    num_tokens: int
    """Prompt and output tokens so far."""
    num_blocks: int
    """To reserve, growth and what the target holds already included."""
    block_hashes: tuple[bytes, ...]
    """Of the full blocks, prompt first."""
    output_tokens: tuple[int, ...]
    fingerprint: tuple[tuple[str, str], ...]
    """What must be the same on both sides: (name, value)."""
    request: bytes
    """The engine's own encoding of the original request; never looked into here."""

    @property
    def engine_id(self) -> str:
        return engine_id(self.request_id, self.epoch)


@dataclass(frozen=True, slots=True)
class Stage:
    """Copy `copy` (1, 2, ...) brings these blocks: receive them."""

    migration: str
    copy: int
    first_block: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Grow:
    """The request outgrows the reservation: reserve this many in all. Answered by GrowAck or Abort."""

    migration: str
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Everything is copied and the source has stopped: run it. Answered by Accepted or Abort."""

    migration: str
    epoch: Epoch
    output_tokens: tuple[int, ...]
    """Those since PREPARE."""
    num_computed_tokens: int
    priority: int
    state: bytes
    """Sampling state in the engine's own encoding; never looked into here."""


@dataclass(frozen=True, slots=True)
class AbortRequest:
    """The request was aborted at the source after COMMIT: drop it."""

    migration: str
    engine_id: str


@dataclass(frozen=True, slots=True)
class ChangePriority:
    """The request's priority was changed at the source after COMMIT."""

    migration: str
    engine_id: str
    priority: int


# ---- target to source -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ack:
    """Reserved; the first `num_cached_blocks` need not be sent."""

    migration: str
    num_cached_blocks: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Refuse:
    migration: str
    reason: str


@dataclass(frozen=True, slots=True)
class GrowAck:
    migration: str
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is the target's."""

    migration: str


# ---- both ways ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Abort:
    """It is over. From a target it is a promise too: this migration was not and will never be adopted."""

    migration: str
    reason: str


FromSource = Prepare | Stage | Grow | Commit | Abort | AbortRequest | ChangePriority
FromTarget = Ack | Refuse | GrowAck | Accepted | Abort
PeerMessageType = FromSource | FromTarget
PEER_MESSAGES: tuple[type, ...] = (
    Prepare,
    Stage,
    Grow,
    Commit,
    AbortRequest,
    ChangePriority,
    Ack,
    Refuse,
    GrowAck,
    Accepted,
    Abort,
)

# ---- to the API server, on the instance's own output socket, behind all tokens so far --------------------


@dataclass(frozen=True, slots=True)
class Moved:
    """The source is done with `epoch` after `offset` output tokens; `new_epoch` goes on at `target`."""

    request_id: str
    epoch: Epoch
    new_epoch: Epoch
    target: int
    """uid"""
    offset: int
    confirmed: bool
    """False: the source does not know whether the target took it."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """The target runs `epoch`; its first token has `offset` output tokens before it."""

    request_id: str
    epoch: Epoch
    offset: int


Notice = Moved | Adopted
NOTICES: tuple[type, ...] = (Moved, Adopted)
