"""One migration of one request to here: a reservation and its end."""

from __future__ import annotations

from typing import assert_never

from llumnix.core.handover.actions import (
    AbortEngineRequest,
    Action,
    Adopt,
    CancelCopy,
    FreeReservation,
    GrowReservation,
    MigrationEnded,
    Outcome,
    ReceiveBlocks,
    Reserve,
    SendToPeer,
    SetEnginePriority,
    ToOwner,
)
from llumnix.core.handover.events import (
    AdoptDone,
    AdoptFailed,
    CancelConfirmed,
    CancelMigration,
    CopyDone,
    CopyFailed,
    GrowFailed,
    Grown,
    OwnerLost,
    PeerLost,
    PeerMessage,
    RequestAborted,
    ReservationAnswer,
    Reserved,
    ReserveFailed,
    TargetEvent,
    Tick,
)
from llumnix.core.handover.messages import (
    Abort,
    AbortRequest,
    Accepted,
    Ack,
    Adopted,
    ChangePriority,
    Commit,
    Grow,
    GrowAck,
    PeerMessageType,
    Prepare,
    Refuse,
    Stage,
)
from llumnix.core.handover.settings import HandoverSettings
from llumnix.core.handover.states import TargetState

S = TargetState


class TargetHandover:
    """Reserves room for one request, takes its blocks in and adopts it, or gives the room back.

    Not thread-safe. Invariants: once Abort or Refuse is sent the request is never adopted; the reservation is
    freed only when no copy is open and the engine owes no answer; every state but ADOPTING (which the engine
    ends in the same turn) and CANCELLING (which the transport ends) has a deadline.
    """

    def __init__(
        self, prepare: Prepare, peer: int, block_size: int, settings: HandoverSettings, now: float
    ) -> None:
        self.prepare = prepare
        self.migration = prepare.migration
        self.peer = peer
        self.owner = prepare.owner
        self.state = S.RESERVING
        self.num_blocks_copied = 0
        self.num_blocks_skipped = 0
        self.num_reserved_blocks = 0
        # Longer than the source's own, so that it is the source that gives up first.
        self.deadline: float | None = now + settings.timeout_s + settings.handover_timeout_s
        self._block_size = block_size
        self._num_copies = 0
        self._next_block = 0
        self._open: dict[int, int] = {}
        self._once_adopted: list[Action] = []
        self._engine_owes = True
        self._commit: Commit | None = None

    @property
    def is_over(self) -> bool:
        """Nothing of it is left here but, perhaps, the adopted request."""
        return self.state is S.ENDED

    def start(self) -> list[Action]:
        return [Reserve(self.prepare)]

    def handle(self, event: TargetEvent, now: float) -> list[Action]:
        """Take in one event of this migration and say what to do; late ones are ignored."""
        match event:
            case CopyDone() | CopyFailed() | CancelConfirmed():
                return self._copy_ended(event)
            case Reserved() | ReserveFailed() | Grown() | GrowFailed() | AdoptDone() | AdoptFailed():
                return self._engine_answers(event)
            case PeerMessage(_, message):
                return self._hear(message)
            case RequestAborted():
                return self._drop_request() if not self.state.is_over else []
            case _ if self.state.is_settled:
                return []
            case PeerLost(_, reason):
                return self._cancel(f"the source was lost: {reason}", tell_peer=False)
            case OwnerLost(owner):
                return self._cancel(f"API server {owner} is gone")
            case CancelMigration(_, reason):
                return self._cancel(reason)
            case Tick():
                if self.deadline is None or now < self.deadline:
                    return []
                return self._cancel(f"the source brought it to no end, was {self.state}")
            case _:
                assert_never(event)

    # ---- the source's messages --------------------------------------------------------------------------

    def _hear(self, message: PeerMessageType) -> list[Action]:
        match message:
            case AbortRequest():
                return self._drop_request()
            case ChangePriority():
                return self._change_priority(message)
            case _ if self.state.is_settled:
                return []
            case Abort(_, reason):
                return self._cancel(reason, tell_peer=False)
            case Stage(_, copy, first_block, num_blocks) if self.state is S.RECEIVING:
                return self._receive(copy, first_block, num_blocks)
            case Grow(_, num_blocks) if self.state is S.RECEIVING and not self._engine_owes:
                self._engine_owes = True
                return [GrowReservation(self.migration, num_blocks)]
            case Commit() if self.state is S.RECEIVING and not self._engine_owes:
                self.state = S.COMMITTED
                self._commit = message
                return self._adopt_if_complete()
        return self._cancel(f"{type(message).__name__} came while {self.state}: a message was lost")

    def _receive(self, copy: int, first_block: int, num_blocks: int) -> list[Action]:
        due = (self._num_copies + 1, self._next_block)
        if (copy, first_block) != due or first_block + num_blocks > self.num_reserved_blocks:
            return self._cancel(f"copy {copy} of block {first_block} is out of turn: a message was lost")
        self._num_copies = copy
        self._next_block += num_blocks
        self._open[copy] = num_blocks
        return [ReceiveBlocks(self.migration, copy, self.peer, first_block, num_blocks)]

    def _drop_request(self) -> list[Action]:
        abort = AbortEngineRequest(self.prepare.engine_id)
        if self.state is S.ADOPTING:
            self._once_adopted.append(abort)
            return []
        if self.state.is_over:
            return [abort]
        return self._cancel("the request was aborted", tell_peer=False)

    def _change_priority(self, message: ChangePriority) -> list[Action]:
        change = SetEnginePriority(message.engine_id, message.priority)
        if self.state.is_over:
            return [change]
        self._once_adopted.append(change)
        return []

    # ---- transport and engine ---------------------------------------------------------------------------

    def _copy_ended(self, event: CopyDone | CopyFailed | CancelConfirmed) -> list[Action]:
        num_blocks = self._open.pop(event.copy, None)
        if num_blocks is None:
            return []
        if self.state is S.CANCELLING:
            return self._free_if_quiet()
        if not isinstance(event, CopyDone):
            why = event.reason if isinstance(event, CopyFailed) else "it was cancelled"
            return self._cancel(f"the copy failed at the target: {why}")
        self.num_blocks_copied += num_blocks
        return self._adopt_if_complete() if self.state is S.COMMITTED else []

    def _engine_answers(self, event: ReservationAnswer) -> list[Action]:
        self._engine_owes = False
        if isinstance(event, Reserved | Grown):
            self.num_reserved_blocks = event.num_blocks
        if self.state is S.CANCELLING:
            return self._free_if_quiet()
        match event:
            case Reserved(_, num_cached_blocks, num_blocks):
                self.state = S.RECEIVING
                self.num_blocks_skipped = self._next_block = num_cached_blocks
                return [self._tell(Ack(self.migration, num_cached_blocks, num_blocks))]
            case ReserveFailed(_, reason):
                refuse = self._tell(Refuse(self.migration, reason))
                return [refuse, *self._cancel(reason, tell_peer=False)]
            case Grown(_, num_blocks):
                return [self._tell(GrowAck(self.migration, num_blocks))]
            case GrowFailed(_, reason) | AdoptFailed(_, reason):
                return self._cancel(reason)
            case AdoptDone():
                return self._adopted()
            case _:
                assert_never(event)

    # ---- ends -------------------------------------------------------------------------------------------

    def _adopt_if_complete(self) -> list[Action]:
        assert self._commit is not None, "asked only once COMMIT came"
        if self._open:
            return []
        num_needed = -(-self._commit.num_computed_tokens // self._block_size)
        num_filled = self.num_blocks_skipped + self.num_blocks_copied
        if num_filled < num_needed or self._commit.epoch != self.prepare.epoch:
            return self._cancel(f"{num_filled} of {num_needed} blocks came: a message was lost")
        self.state = S.ADOPTING
        self.deadline = None
        self._engine_owes = True
        return [Adopt(self.prepare, self._commit)]

    def _adopted(self) -> list[Action]:
        assert self._commit is not None, "only a committed one is adopted"
        self.state = S.ENDED
        prepare = self.prepare
        offset = len(prepare.output_tokens) + len(self._commit.output_tokens)
        return [
            ToOwner(prepare.owner, Adopted(prepare.request_id, prepare.epoch, offset)),
            self._tell(Accepted(self.migration)),
            self._ended(Outcome.MOVED, "adopted"),
            *self._once_adopted,
        ]

    def _cancel(self, reason: str, *, tell_peer: bool = True) -> list[Action]:
        self.state = S.CANCELLING
        self.deadline = None
        abort: list[Action] = [self._tell(Abort(self.migration, reason))] if tell_peer else []
        stop: list[Action] = [CancelCopy(self.migration, copy) for copy in self._open]
        return [*abort, self._ended(Outcome.ABORTED, reason), *stop, *self._free_if_quiet()]

    def _free_if_quiet(self) -> list[Action]:
        """Blocks go back only when nothing can write into them any more."""
        if self._open or self._engine_owes:
            return []
        self.state = S.ENDED
        return [FreeReservation(self.migration)] if self.num_reserved_blocks else []

    def _ended(self, outcome: Outcome, reason: str) -> Action:
        counts = (self._num_copies, self.num_blocks_copied, self.num_blocks_skipped)
        return MigrationEnded(self.migration, outcome, reason, *counts)

    def _tell(self, message: PeerMessageType) -> Action:
        return SendToPeer(self.peer, message)

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        assert (self.deadline is None) == (self.state.is_settled), self.state
        assert not (self.state is S.ENDED and (self._open or self._engine_owes))
        assert self._next_block <= max(self.num_reserved_blocks, self.num_blocks_skipped)
