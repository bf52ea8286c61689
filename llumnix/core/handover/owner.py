"""The owner of record of one request: the API server's side of epochs, migrations and new attempts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from llumnix.core.handover.epochs import Epoch
from llumnix.core.handover.lineage import Lineage
from llumnix.core.handover.messages import Adopted, Moved
from llumnix.core.handover.owner_events import (
    AbortAt,
    AdoptedAt,
    AttemptHeld,
    AttemptPlaced,
    ClientAborted,
    Deliver,
    Fail,
    Fenced,
    Forgotten,
    MovedFrom,
    Outputs,
    OwnerAction,
    OwnerEvent,
    OwnerTick,
    StartAttempt,
)
from llumnix.core.handover.settings import HandoverSettings
from llumnix.core.handover.states import OwnerState

S = OwnerState


class RequestOwner:
    """Delivers one request's tokens in order and once, whatever becomes of the instances that run it.

    Not thread-safe. Invariants: only outputs of the present attempt, from instances that are not fenced, are
    delivered, each at the offset that is due; an open gap has a deadline; a state other than RUNNING without
    a gap, and waiting for room, is over or has a deadline.
    """

    def __init__(self, request_id: str, settings: HandoverSettings, now: float) -> None:
        self.request_id = request_id
        self.state = S.PLACING
        self.attempt = 0
        self.num_delivered = 0
        self.tokens: list[int] = []
        self.lineage = Lineage(offset=0)
        self._settings = settings
        self._num_lost = 0
        self._fenced: set[int] = set()
        self._dropped_by: set[int] = set()
        """Instances that dropped the present attempt; notices to the contrary may be under way."""
        self._buffer: list[Outputs] = []
        self._gap_since: float | None = None
        self._place_by: float | None = now + settings.resume_timeout_s
        self._held_reason = "no instance has been found for it yet"

    @property
    def is_over(self) -> bool:
        return self.state.is_over

    def start(self) -> list[OwnerAction]:
        return [StartAttempt(Epoch(0, 0), (), "new request")]

    def handle(self, event: OwnerEvent, now: float) -> list[OwnerAction]:
        """Take in one event and say what to do, in this order."""
        actions = answer_to_stray(event) if self.is_over else self._handle(event, now)
        self._watch_gap(now)
        return actions

    def _handle(self, event: OwnerEvent, now: float) -> list[OwnerAction]:
        match event:
            case Outputs():
                return self._take_outputs(event)
            case AdoptedAt(uid, notice):
                return self._adopted(event, uid, notice)
            case MovedFrom(uid, notice):
                return self._moved(event, uid, notice, now)
            case AttemptPlaced():
                return self._placed(event, now)
            case AttemptHeld():
                return self._held(event, now)
            case Fenced(uid, reason):
                return self._instance_fenced(uid, reason, now)
            case Forgotten(uid, reason):
                return self._instance_forgot(uid, reason, now)
            case ClientAborted():
                return self._end(S.ABORTED)
            case OwnerTick():
                return self._tick(now)
            case _:
                assert_never(event)

    # ---- attempts ---------------------------------------------------------------------------------------

    def _placed(self, event: AttemptPlaced, now: float) -> list[OwnerAction]:
        if event.epoch.attempt != self.attempt or self.state is not S.PLACING:
            return answer_to_stray(event)
        self.state = S.RUNNING
        self._place_by = None
        self.lineage.add(event.epoch.hop, event.uid, offset=self.num_delivered)
        if event.uid in self._fenced:
            return self._resume(f"instance #{event.uid} was lost before the request ran there", now)
        return []

    def _held(self, event: AttemptHeld, now: float) -> list[OwnerAction]:
        if event.epoch.attempt != self.attempt or self.state is not S.PLACING:
            return []
        self._held_reason = event.reason
        if event.is_any_left:
            self._place_by = None
        elif self._place_by is None:
            self._place_by = now + self._settings.resume_timeout_s
        return []

    def _resume(self, reason: str, now: float) -> list[OwnerAction]:
        """A new attempt from the tokens delivered; whatever else runs of the request is aborted."""
        actions = self._abort_everywhere()
        self.state = S.PLACING
        self.attempt += 1
        self.lineage = Lineage(offset=self.num_delivered)
        self._buffer.clear()
        self._dropped_by.clear()
        self._place_by = now + self._settings.resume_timeout_s
        self._held_reason = "no instance has been found for it yet"
        return [*actions, StartAttempt(Epoch(self.attempt, 0), tuple(self.tokens), reason)]

    def _abort_everywhere(self) -> list[OwnerAction]:
        return [
            AbortAt(hop.uid, self.request_id, Epoch(self.attempt, hop.number))
            for hop in self.lineage.hops()
            if hop.uid not in self._fenced
        ]

    def _end(self, state: OwnerState) -> list[OwnerAction]:
        actions = self._abort_everywhere() if state is not S.FINISHED else []
        self.state = state
        self._buffer.clear()
        self._place_by = None
        return actions

    # ---- outputs and notices ----------------------------------------------------------------------------

    def _is_stale(self, uid: int, epoch: Epoch) -> bool:
        return uid in self._fenced or uid in self._dropped_by or epoch.attempt != self.attempt

    def _take_outputs(self, event: Outputs) -> list[OwnerAction]:
        if self._is_stale(event.uid, event.epoch) or self.lineage.is_superseded(
            event.epoch.hop, event.offset
        ):
            return self._answer(event.uid, event)
        self._buffer.append(event)
        return self._deliver_what_is_due()

    def accept(self, uid: int, epoch: Epoch, offset: int, tokens: Sequence[int]) -> bool:
        """Whether a step's tokens are just what is due from where the request runs, and are delivered hereby.

        What nearly every output is, without an event and an action each; the last one is told by `handle`.
        """
        latest = self.lineage.latest
        if (
            offset != self.num_delivered
            or self._buffer
            or self.state is not S.RUNNING
            or latest is None
            or latest.number != epoch.hop
            or latest.offset is None
            or self._is_stale(uid, epoch)
        ):
            return False
        self.tokens.extend(tokens)
        self.num_delivered += len(tokens)
        return True

    def _deliver_what_is_due(self) -> list[OwnerAction]:
        actions: list[OwnerAction] = []
        while (due := self._next_due()) is not None:
            self._buffer.remove(due)
            num_doubled = self.num_delivered - due.offset
            fresh = due.tokens[num_doubled:]
            if not fresh and due.finish_reason is None:
                continue
            self.tokens.extend(fresh)
            self.num_delivered += len(fresh)
            actions.append(Deliver(due, num_doubled))
            if due.finish_reason is not None:
                return actions + self._end(S.FINISHED)
        return actions

    def _next_due(self) -> Outputs | None:
        return next((o for o in self._buffer if o.offset <= self.num_delivered), None)

    def _adopted(self, event: AdoptedAt, uid: int, notice: Adopted) -> list[OwnerAction]:
        if self._is_stale(uid, notice.epoch):
            return self._answer(uid, event)
        self.lineage.add(notice.epoch.hop, uid, offset=notice.offset)
        return []

    def _moved(self, event: MovedFrom, uid: int, notice: Moved, now: float) -> list[OwnerAction]:
        if notice.epoch.attempt != self.attempt:
            return self._answer(uid, event)
        if self._is_stale(uid, notice.epoch):
            return []  # no answer: it would end the hop that was moved to, which may be the one that lives
        self.lineage.expect(notice.new_epoch.hop, notice.target)
        if self.lineage.latest_uid in self._fenced | self._dropped_by:
            return self._resume(f"it was moved to instance #{notice.target}, which is lost", now)
        return []

    def _answer(self, uid: int, event: Outputs | AdoptedAt | MovedFrom) -> list[OwnerAction]:
        """A fenced instance gets no answer: it is dead, or will learn that it is."""
        actions = answer_to_stray(event)
        return [a for a in actions if not (isinstance(a, AbortAt) and a.uid in self._fenced)]

    # ---- losses -----------------------------------------------------------------------------------------

    def _instance_fenced(self, uid: int, reason: str, now: float) -> list[OwnerAction]:
        self._fenced.add(uid)
        return self._instance_gone(uid, reason, now)

    def _instance_forgot(self, uid: int, reason: str, now: float) -> list[OwnerAction]:
        if self.state is S.RUNNING:
            self._dropped_by.add(uid)
        return self._instance_gone(uid, reason, now)

    def _instance_gone(self, uid: int, reason: str, now: float) -> list[OwnerAction]:
        if self.state is not S.RUNNING:
            return []
        is_there = self.lineage.latest_uid == uid
        # What is missing may have been on its way from there, and is not taken any more.
        may_miss = self._has_gap() and self.lineage.ran_at(uid)
        if not (is_there or may_miss):
            return []
        lost = f"instance #{uid} was lost: {reason}"
        self._num_lost += 1
        if self._num_lost >= self._settings.max_attempts:
            why = f"{lost}; it has lost {self._num_lost} instances (migration.max_attempts)"
            return [*self._end(S.FAILED), Fail(why)]
        return self._resume(lost, now)

    def _has_gap(self) -> bool:
        return self.state is S.RUNNING and self.lineage.has_gap(self.num_delivered)

    def _watch_gap(self, now: float) -> None:
        if not self._has_gap():
            self._gap_since = None
        elif self._gap_since is None:
            self._gap_since = now

    def _tick(self, now: float) -> list[OwnerAction]:
        if self._place_by is not None and now >= self._place_by:
            actions = self._end(S.FAILED)
            waited = f"{self._settings.resume_timeout_s:g} s"
            return [*actions, Fail(f"no instance took the request within {waited}: {self._held_reason}")]
        gap_by = self._gap_by()
        if gap_by is not None and now >= gap_by:
            return self._resume(
                f"a handover was not complete within {self._settings.handover_timeout_s:g} s", now
            )
        return []

    def _gap_by(self) -> float | None:
        return None if self._gap_since is None else self._gap_since + self._settings.handover_timeout_s

    @property
    def deadline(self) -> float | None:
        """When an OwnerTick is due at the latest; None: nothing waits."""
        return min((t for t in (self._place_by, self._gap_by()) if t is not None), default=None)

    @property
    def uid(self) -> int | None:
        """Where the request runs, as far as known here."""
        return self.lineage.latest_uid if self.state is S.RUNNING else None

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        assert len(self.tokens) == self.num_delivered
        assert (self._gap_since is not None) == self._has_gap()
        assert self._next_due() is None
        assert self.state is S.PLACING or self._place_by is None
        assert (self.state is S.RUNNING) == (self.lineage.latest_uid is not None) or self.is_over
        if self.is_over:
            assert not self._buffer and self.deadline is None


def answer_to_stray(event: OwnerEvent) -> list[OwnerAction]:
    """What an event of a request that is over, unknown or in a newer attempt is answered with."""
    match event:
        case Outputs(uid, request_id, epoch) if event.finish_reason is None:
            return [AbortAt(uid, request_id, epoch)]
        case AdoptedAt(uid, notice):
            return [AbortAt(uid, notice.request_id, notice.epoch)]
        case MovedFrom(_, notice):
            # The source is done with it; the target may run it and not have said so yet.
            return [AbortAt(notice.target, notice.request_id, notice.new_epoch)]
        case AttemptPlaced(uid, request_id, epoch):
            return [AbortAt(uid, request_id, epoch)]
    return []
