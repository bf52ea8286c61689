"""What the llumlet tells Handovers: peers' messages, the transport's completions, the engine's changes.

Engine events are told on the engine thread, in the same turn in which the thing happened.
"""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.core.handover.epochs import Epoch, engine_id
from llumnix.core.handover.messages import PeerMessageType, Prepare


@dataclass(frozen=True, slots=True)
class RequestSnapshot:
    """A request as its engine has it now."""

    request_id: str
    epoch: Epoch
    owner: int
    priority: int
    adapter: str
    num_tokens: int
    num_settled_tokens: int
    """Tokens whose KV is written for sure: computed, less those in flight."""
    block_hashes: tuple[bytes, ...]
    output_tokens: tuple[int, ...]
    request: bytes

    @property
    def engine_id(self) -> str:
        return engine_id(self.request_id, self.epoch)

    def prepare(
        self, migration: str, epoch: Epoch, num_blocks: int, fingerprint: tuple[tuple[str, str], ...]
    ) -> Prepare:
        """The question whether it may run elsewhere under `epoch`, with `num_blocks` in all."""
        return Prepare(
            migration=migration,
            request_id=self.request_id,
            epoch=epoch,
            owner=self.owner,
            priority=self.priority,
            adapter=self.adapter,
            num_tokens=self.num_tokens,
            num_blocks=num_blocks,
            block_hashes=self.block_hashes,
            output_tokens=self.output_tokens,
            fingerprint=fingerprint,
            request=self.request,
        )


@dataclass(frozen=True, slots=True)
class StartMigration:
    """Move a request away; refused with CommandRefused."""

    migration: str
    """From Handovers.new_id()."""
    target: int
    """uid"""
    request: RequestSnapshot


@dataclass(frozen=True, slots=True)
class CancelMigration:
    """Give it up if COMMIT was not sent (source) or not received (target)."""

    migration: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; sent when `next_deadline()` has come, more often does no harm."""


# ---- control channel ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerMessage:
    peer: int
    message: PeerMessageType


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The peer died, or the connection to it broke: messages under way may be lost."""

    peer: int
    reason: str


@dataclass(frozen=True, slots=True)
class OwnerLost:
    """The connection to the API server is gone: what runs for it here is about to be dropped.

    Told before the requests are dropped: RequestAborted alone would be passed on to a target that has been
    sent COMMIT, as a client's abort is, and end a request that the API server may have heard is there.
    """

    owner: int


# ---- transport: exactly one of the first three ends a copy on each side -----------------------------------


@dataclass(frozen=True, slots=True)
class CopyDone:
    """All blocks are sent (source) or in place (target), and the transport will not touch them again."""

    migration: str
    copy: int


@dataclass(frozen=True, slots=True)
class CopyFailed:
    """The copy failed, and the transport will not touch the blocks again."""

    migration: str
    copy: int
    reason: str


@dataclass(frozen=True, slots=True)
class CancelConfirmed:
    """The copy was cancelled, and the transport will not touch the blocks again."""

    migration: str
    copy: int


# ---- engine, of requests that run here -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stepped:
    engine_id: str
    num_tokens: int
    num_settled_tokens: int


@dataclass(frozen=True, slots=True)
class Quiesced:
    """Answer to Freeze: out of the batch and nothing in flight; all its tokens are in the output queue."""

    engine_id: str
    output_tokens: tuple[int, ...]
    """Those from Freeze.from_output on."""
    num_tokens: int
    num_computed_tokens: int
    state: bytes


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """It has left the engine. Told of every request, migrating or not."""

    engine_id: str


@dataclass(frozen=True, slots=True)
class RequestAborted:
    """The API server ordered its abort; it has left the engine, if it was there at all."""

    engine_id: str


@dataclass(frozen=True, slots=True)
class RequestPreempted:
    """Its blocks are given back; those that a copy holds stay out of the pool."""

    engine_id: str


@dataclass(frozen=True, slots=True)
class PriorityChanged:
    engine_id: str
    priority: int


# ---- engine, of reservations -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reserved:
    """Answer to Reserve; the first `num_cached_blocks` of `num_blocks` were found in the prefix cache."""

    migration: str
    num_cached_blocks: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class ReserveFailed:
    """Nothing is reserved."""

    migration: str
    reason: str


@dataclass(frozen=True, slots=True)
class Grown:
    """Answer to GrowReservation."""

    migration: str
    num_blocks: int


@dataclass(frozen=True, slots=True)
class GrowFailed:
    """The reservation is as it was."""

    migration: str
    reason: str


@dataclass(frozen=True, slots=True)
class AdoptDone:
    """Answer to Adopt: the reservation has become a request. Told before its first step."""

    migration: str


@dataclass(frozen=True, slots=True)
class AdoptFailed:
    """The reservation is as it was."""

    migration: str
    reason: str


@dataclass(frozen=True, slots=True)
class Pressure:
    """The engine lacks this many blocks and would preempt next."""

    num_blocks: int


@dataclass(frozen=True, slots=True)
class Closed:
    """Take no migrations from now on; the reason goes into the refusals ("is cordoned")."""

    reason: str


@dataclass(frozen=True, slots=True)
class Opened:
    pass


CopyEnd = CopyDone | CopyFailed | CancelConfirmed
RequestChange = Stepped | Quiesced | RequestFinished | RequestAborted | RequestPreempted | PriorityChanged
ReservationAnswer = Reserved | ReserveFailed | Grown | GrowFailed | AdoptDone | AdoptFailed
SourceEvent = PeerMessage | PeerLost | OwnerLost | CopyEnd | RequestChange | CancelMigration | Tick
TargetEvent = (
    PeerMessage | PeerLost | OwnerLost | CopyEnd | ReservationAnswer | RequestAborted | CancelMigration | Tick
)
Event = SourceEvent | TargetEvent | StartMigration | Pressure | Closed | Opened
