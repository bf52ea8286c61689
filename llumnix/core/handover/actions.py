"""What Handovers wants done, in this order, on the engine thread between two steps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from llumnix.core.handover.messages import Commit, Notice, PeerMessageType, Prepare


class Outcome(StrEnum):
    MOVED = "moved"
    ABORTED = "aborted"
    DOUBT = "doubt"  # COMMIT was sent and its answer never came: the API server decides


@dataclass(frozen=True, slots=True)
class SendToPeer:
    peer: int
    message: PeerMessageType


@dataclass(frozen=True, slots=True)
class ToOwner:
    """Send to the API server `owner` through the engine's output queue, behind all tokens so far."""

    owner: int
    notice: Notice


# ---- source ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CopyBlocks:
    """Take one more reference on each of these blocks and have the transport send them."""

    migration: str
    copy: int
    peer: int
    engine_id: str
    first_block: int
    num_blocks: int
    stage: int
    """As MigrationEnded counts them: of the last stage, the one before."""


@dataclass(frozen=True, slots=True)
class ReleaseCopy:
    """Give back the references that CopyBlocks took: the transport touches the blocks no more."""

    migration: str
    copy: int


@dataclass(frozen=True, slots=True)
class CancelCopy:
    """Either side: have the transport stop; answered by CancelConfirmed unless the copy has just ended."""

    migration: str
    copy: int


@dataclass(frozen=True, slots=True)
class Freeze:
    """Take the request out of the batch or queue; answered by Quiesced once nothing is in flight.

    Instead of it may come RequestFinished (by a token that was in flight) or RequestAborted.
    """

    migration: str
    engine_id: str
    from_output: int


@dataclass(frozen=True, slots=True)
class Unfreeze:
    """The request goes on here."""

    engine_id: str


@dataclass(frozen=True, slots=True)
class Release:
    """The frozen request is another's: drop it without any output."""

    engine_id: str


# ---- target ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reserve:
    """Reserve blocks, a batch slot and a token of the step; answered by Reserved or ReserveFailed."""

    prepare: Prepare


@dataclass(frozen=True, slots=True)
class GrowReservation:
    """Have `num_blocks` in all; answered by Grown or GrowFailed."""

    migration: str
    num_blocks: int


@dataclass(frozen=True, slots=True)
class ReceiveBlocks:
    """Have the transport fill these blocks of the reservation."""

    migration: str
    copy: int
    peer: int
    first_block: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class FreeReservation:
    """Blocks, slot and token of the step go back; no copy is under way into them."""

    migration: str


@dataclass(frozen=True, slots=True)
class Adopt:
    """Make the reservation a request that runs; answered by AdoptDone or AdoptFailed."""

    prepare: Prepare
    commit: Commit


@dataclass(frozen=True, slots=True)
class AbortEngineRequest:
    """Abort a request that was adopted; unknown ids are left alone."""

    engine_id: str


@dataclass(frozen=True, slots=True)
class SetEnginePriority:
    """Change the priority of a request that was adopted; unknown ids are left alone."""

    engine_id: str
    priority: int


# ---- both -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MigrationEnded:
    """The outcome is known here; copies may still have to be cancelled. One on each side."""

    migration: str
    outcome: Outcome
    reason: str
    stages: int
    """At the source those before the last one; at the target the copies that were announced."""
    num_blocks_copied: int
    num_blocks_skipped: int


Action = (
    SendToPeer
    | ToOwner
    | CopyBlocks
    | ReleaseCopy
    | CancelCopy
    | Freeze
    | Unfreeze
    | Release
    | Reserve
    | GrowReservation
    | ReceiveBlocks
    | FreeReservation
    | Adopt
    | AbortEngineRequest
    | SetEnginePriority
    | MigrationEnded
)
