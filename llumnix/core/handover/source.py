"""One migration of one request away from here."""

from __future__ import annotations

from typing import assert_never

from llumnix.core.handover.actions import (
    Action,
    CancelCopy,
    CopyBlocks,
    Freeze,
    MigrationEnded,
    Outcome,
    Release,
    ReleaseCopy,
    SendToPeer,
    ToOwner,
    Unfreeze,
)
from llumnix.core.handover.admission import Fingerprint
from llumnix.core.handover.epochs import Epoch, engine_id
from llumnix.core.handover.events import (
    CancelConfirmed,
    CancelMigration,
    CopyDone,
    CopyFailed,
    OwnerLost,
    PeerLost,
    PeerMessage,
    PriorityChanged,
    Quiesced,
    RequestAborted,
    RequestFinished,
    RequestPreempted,
    SourceEvent,
    StartMigration,
    Stepped,
    Tick,
)
from llumnix.core.handover.messages import (
    Abort,
    AbortRequest,
    Accepted,
    Ack,
    ChangePriority,
    Commit,
    Grow,
    GrowAck,
    Moved,
    PeerMessageType,
    Refuse,
    Stage,
)
from llumnix.core.handover.settings import HandoverSettings
from llumnix.core.handover.stages import Stages
from llumnix.core.handover.states import SourceState

S = SourceState


class SourceHandover:
    """Moves one request to a peer; it goes on here whenever that ends before COMMIT.

    Not thread-safe. Invariants: the request is frozen exactly in FREEZING, LAST_GROWING, LAST_COPYING and
    COMMITTING; a copy is open in COPYING, LAST_COPYING and CANCELLING, perhaps in COMMITTING (the very last
    one), and nowhere else; once COMMIT is sent the request runs here again only if the target promised by
    Abort never to adopt it.
    """

    def __init__(
        self,
        start: StartMigration,
        epoch: Epoch,
        fingerprint: Fingerprint,
        block_size: int,
        settings: HandoverSettings,
        now: float,
    ) -> None:
        request = start.request
        self.migration = start.migration
        self.peer = start.target
        self.owner = request.owner
        self.request = request
        self.state = S.PREPARING
        self.stages = Stages(block_size, settings, request.num_tokens, request.num_settled_tokens)
        self.deadline: float | None = now + settings.timeout_s
        self._epoch = epoch
        self._new_engine_id = engine_id(request.request_id, epoch)
        self._fingerprint = fingerprint
        self._settings = settings
        self._priority = request.priority
        self._quiesced: Quiesced | None = None

    @property
    def is_over(self) -> bool:
        """Nothing of it is left here."""
        return self.state is S.ENDED

    def start(self) -> list[Action]:
        num_blocks = self.stages.to_reserve()
        return [self._tell(self.request.prepare(self.migration, self._epoch, num_blocks, self._fingerprint))]

    def handle(self, event: SourceEvent, now: float) -> list[Action]:
        """Take in one event of this migration and say what to do; late ones are ignored."""
        match event:
            case CopyDone() | CopyFailed() | CancelConfirmed():
                return self._copy_ended(event, now)
            case _ if self.state.is_over:
                return []
            case PeerMessage(_, message):
                return self._hear(message, now)
            case PeerLost(_, reason):
                return self._peer_lost(reason)
            case Stepped() if self.state is S.COMMITTING:
                return []  # whatever it has lost here since, the target has everything
            case Stepped(_, num_tokens, num_settled_tokens):
                return self._stepped(num_tokens, num_settled_tokens)
            case Quiesced():
                return self._request_quiesced(event, now)
            case RequestFinished():
                return self._give_up("the request finished at the source", request_is_here=False)
            case RequestAborted():
                return self._request_aborted()
            case OwnerLost(owner):
                return self._owner_lost(owner)
            case RequestPreempted():
                return self._preempted()
            case PriorityChanged(_, priority):
                return self._priority_changed(priority)
            case CancelMigration(_, reason):
                return [] if self.state is S.COMMITTING else self._give_up(reason)
            case Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    # ---- the target's answers ---------------------------------------------------------------------------

    def _hear(self, message: PeerMessageType, now: float) -> list[Action]:
        match message:
            case Ack() if self.state is S.PREPARING:
                self.stages.reserved(message.num_cached_blocks, message.num_blocks)
                return self._next_stage(now)
            case GrowAck() if self.state in (S.GROWING, S.LAST_GROWING):
                self.stages.num_reserved = message.num_blocks
                return self._next_stage(now)
            case Accepted() if self.state is S.COMMITTING:
                self.stages.confirm_copy()
                return self._hand_over(confirmed=True, reason="the target took the request")
            case Refuse(_, reason) | Abort(_, reason):
                # A promise never to adopt it: also after COMMIT the request may go on here.
                return self._give_up(reason, tell_peer=False)
        return []

    def _peer_lost(self, reason: str) -> list[Action]:
        if self.state is S.COMMITTING:
            return self._doubt(f"the target was lost before it answered COMMIT: {reason}")
        return self._give_up(f"the target was lost: {reason}", tell_peer=False)

    # ---- stages -----------------------------------------------------------------------------------------

    def _next_stage(self, now: float) -> list[Action]:
        """What comes next when no copy is open and no answer is awaited."""
        if self.stages.outgrew_reservation():
            self.state = S.LAST_GROWING if self._quiesced else S.GROWING
            return [self._tell(Grow(self.migration, self.stages.to_reserve()))]
        if self._quiesced:
            self.stages.begin_last()
            if self.stages.is_complete():
                return self._commit(self._quiesced, now)
            return self._copy_last(self._quiesced, now)
        if self.stages.is_last():
            self.state = S.FREEZING
            return [Freeze(self.migration, self.request.engine_id, len(self.request.output_tokens))]
        self.state = S.COPYING
        self.stages.begin()
        return self._copy_next()

    def _copy_last(self, quiesced: Quiesced, now: float) -> list[Action]:
        """COMMIT goes with the very last copy, so that the target goes on as soon as it has the blocks."""
        self.state = S.LAST_COPYING
        actions = self._copy_next()
        return actions if self.stages.is_more_to_copy() else [*actions, *self._commit(quiesced, now)]

    def _copy_next(self) -> list[Action]:
        copy, first_block, num_blocks = self.stages.open_copy()
        this = self.request.engine_id
        return [
            self._tell(Stage(self.migration, copy, first_block, num_blocks)),
            CopyBlocks(
                self.migration, copy, self.peer, this, first_block, num_blocks, self.stages.num_stages
            ),
        ]

    def _copy_ended(self, event: CopyDone | CopyFailed | CancelConfirmed, now: float) -> list[Action]:
        if not self.stages.num_open or event.copy != self.stages.copy:
            return []
        self.stages.close_copy(done=isinstance(event, CopyDone))
        release: Action = ReleaseCopy(self.migration, event.copy)
        if self.state is S.CANCELLING:
            self.state = S.ENDED
            return [release]
        if self.state is S.COMMITTING:
            return [release]  # a failed one fails at the target too: its Abort gives the request back
        if not isinstance(event, CopyDone):
            why = event.reason if isinstance(event, CopyFailed) else "it was cancelled"
            return [release, *self._give_up(f"the copy failed at the source: {why}")]
        if self._quiesced and not self.stages.is_complete():
            return [release, *self._copy_last(self._quiesced, now)]
        return [release, *(self._next_stage(now) if self.stages.is_complete() else self._copy_next())]

    # ---- the request itself -----------------------------------------------------------------------------

    def _stepped(self, num_tokens: int, num_settled_tokens: int) -> list[Action]:
        if self.state is S.COMMITTING:
            return []  # as in _preempted: what is lost here is the target's already
        if num_settled_tokens < self.stages.num_settled_tokens:
            return self._give_up("the request lost its blocks at the source")
        self.stages.num_tokens, self.stages.num_settled_tokens = num_tokens, num_settled_tokens
        return []

    def _request_quiesced(self, event: Quiesced, now: float) -> list[Action]:
        if self.state is not S.FREEZING:
            return []
        self._quiesced = event
        gave_up = self._stepped(event.num_tokens, event.num_computed_tokens)
        return gave_up or self._next_stage(now)

    def _request_aborted(self) -> list[Action]:
        reason = "the request was aborted"
        if self.state is S.COMMITTING:
            passed_on = self._tell(AbortRequest(self.migration, self._new_engine_id))
            return [passed_on, *self._end(Outcome.ABORTED, reason)]
        return self._give_up(reason, request_is_here=False)

    def _owner_lost(self, owner: int) -> list[Action]:
        reason = f"API server {owner} is gone"
        if self.state is S.COMMITTING:
            # Not for us to say: the target has its own connection, and hears an abort where one is meant.
            return self._end(Outcome.ABORTED, reason)
        return self._give_up(reason, request_is_here=False)

    def _preempted(self) -> list[Action]:
        # After COMMIT all blocks are at the target, or held for the last copy; should it still refuse, the
        # request is computed anew.
        if self.state is S.COMMITTING:
            return []
        return self._give_up("the request was preempted at the source")

    def _priority_changed(self, priority: int) -> list[Action]:
        self._priority = priority
        change = ChangePriority(self.migration, self._new_engine_id, priority)
        return [self._tell(change)] if self.state is S.COMMITTING else []

    # ---- ends -------------------------------------------------------------------------------------------

    def _commit(self, quiesced: Quiesced, now: float) -> list[Action]:
        self.state = S.COMMITTING
        self.deadline = now + self._settings.handover_timeout_s
        commit = Commit(
            migration=self.migration,
            epoch=self._epoch,
            output_tokens=quiesced.output_tokens,
            num_computed_tokens=quiesced.num_computed_tokens,
            priority=self._priority,
            state=quiesced.state,
        )
        return [self._tell(commit)]

    def _tick(self, now: float) -> list[Action]:
        if self.deadline is None or now < self.deadline:
            return []
        if self.state is S.COMMITTING:
            timeout_s = self._settings.handover_timeout_s
            return self._doubt(f"the target did not answer COMMIT within {timeout_s:g} s")
        return self._give_up(f"not done within {self._settings.timeout_s:g} s, was {self.state}")

    def _doubt(self, reason: str) -> list[Action]:
        """Whether the target runs it is not known: stop here for good, and let the API server decide."""
        stop = self._tell(Abort(self.migration, reason))
        return [stop, *self._hand_over(confirmed=False, reason=reason)]

    def _hand_over(self, *, confirmed: bool, reason: str) -> list[Action]:
        assert self._quiesced is not None, "COMMIT is sent only after Quiesced"
        request = self.request
        moved = Moved(
            request_id=request.request_id,
            epoch=request.epoch,
            new_epoch=self._epoch,
            target=self.peer,
            offset=len(request.output_tokens) + len(self._quiesced.output_tokens),
            confirmed=confirmed,
        )
        outcome = Outcome.MOVED if confirmed else Outcome.DOUBT
        return [Release(request.engine_id), ToOwner(request.owner, moved), *self._end(outcome, reason)]

    def _give_up(self, reason: str, *, tell_peer: bool = True, request_is_here: bool = True) -> list[Action]:
        actions: list[Action] = [self._tell(Abort(self.migration, reason))] if tell_peer else []
        if self.state.is_frozen and request_is_here:
            actions.append(Unfreeze(self.request.engine_id))
        return actions + self._end(Outcome.ABORTED, reason)

    def _end(self, outcome: Outcome, reason: str) -> list[Action]:
        self.deadline = None
        stages = self.stages
        counts = (stages.num_stages, stages.num_copied, stages.num_skipped)
        ended: Action = MigrationEnded(self.migration, outcome, reason, *counts)
        self.state = S.CANCELLING if stages.num_open else S.ENDED
        return [ended, CancelCopy(self.migration, stages.copy)] if stages.num_open else [ended]

    def _tell(self, message: PeerMessageType) -> Action:
        return SendToPeer(self.peer, message)

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        has_open = self.stages.num_open > 0
        assert has_open == self.state.has_open_copy or self.state is S.COMMITTING, self.state
        assert (self.deadline is None) == (self.state.is_over), self.state
