"""All migrations of one instance, to and from it: what its llumlet talks to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from llumnix.core.events import CommandRefused
from llumnix.core.handover.actions import (
    AbortEngineRequest,
    Action,
    MigrationEnded,
    Outcome,
    SendToPeer,
    SetEnginePriority,
)
from llumnix.core.handover.admission import Fingerprint, mismatch
from llumnix.core.handover.epochs import Epoch
from llumnix.core.handover.events import (
    AdoptDone,
    AdoptFailed,
    CancelConfirmed,
    CancelMigration,
    Closed,
    CopyDone,
    CopyFailed,
    Event,
    GrowFailed,
    Grown,
    Opened,
    OwnerLost,
    PeerLost,
    PeerMessage,
    Pressure,
    PriorityChanged,
    Quiesced,
    RequestAborted,
    RequestChange,
    RequestFinished,
    RequestPreempted,
    Reserved,
    ReserveFailed,
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
    Prepare,
    Refuse,
    Stage,
)
from llumnix.core.handover.settings import HandoverSettings
from llumnix.core.handover.source import SourceHandover
from llumnix.core.handover.states import TargetState
from llumnix.core.handover.target import TargetHandover


class Handovers:
    """Keeps one state machine per migration, within the limits of the instance, and leads events to them.

    `handle` is the only way in. Events of migrations that are over or unknown change nothing; messages of
    such get the answer that ends them at the peer. Not thread-safe: all on the engine thread.
    """

    source_type = SourceHandover
    target_type = TargetHandover

    def __init__(
        self, uid: int, fingerprint: Fingerprint, block_size: int, settings: HandoverSettings
    ) -> None:
        self.uid = uid
        self._fingerprint = fingerprint
        self._block_size = block_size
        self._settings = settings
        self._closed: str | None = None
        self._num_ids = 0
        self._sources: dict[str, SourceHandover] = {}
        self._targets: dict[str, TargetHandover] = {}
        self._source_of: dict[str, str] = {}
        """Migration by engine-side id of the request that leaves; kept until nothing of it is left here."""
        self._hops_used: dict[str, int] = {}
        """Highest hop given out for a request that is still here."""

    def new_id(self) -> str:
        """A migration id that nobody else in the cluster's life gives out."""
        self._num_ids += 1
        return f"m{self.uid}-{self._num_ids}"

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event and say what to do, in this order; StartMigration may raise CommandRefused."""
        actions = self._handle(event, now)
        for action in actions:
            if isinstance(action, MigrationEnded) and action.outcome is not Outcome.ABORTED:
                self._request_left(action.migration)
        self._forget_what_is_over()
        return actions

    def _handle(self, event: Event, now: float) -> list[Action]:
        match event:
            case StartMigration():
                return self._start(event, now)
            case PeerMessage():
                return self._hear(event, now)
            case CopyDone(migration) | CopyFailed(migration) | CancelConfirmed(migration):
                return self._tell_one(migration, event, now)
            case CancelMigration(migration):
                return self._tell_one(migration, event, now)
            case (
                Reserved(migration)
                | ReserveFailed(migration)
                | Grown(migration)
                | GrowFailed(migration)
                | AdoptDone(migration)
                | AdoptFailed(migration)
            ):
                target = self._targets.get(migration)
                return target.handle(event, now) if target else []
            case (
                Stepped()
                | Quiesced()
                | RequestFinished()
                | RequestAborted()
                | RequestPreempted()
                | PriorityChanged()
            ):
                return self._request_changed(event, now)
            case PeerLost(peer):
                involved = [m for m in self._machines() if m.peer == peer]
                return [action for m in involved for action in m.handle(event, now)]
            case OwnerLost(owner):
                theirs = [m for m in self._machines() if m.owner == owner]
                return [action for m in theirs for action in m.handle(event, now)]
            case Tick():
                return [action for m in list(self._machines()) for action in m.handle(event, now)]
            case Pressure(num_blocks):
                return self._make_room(num_blocks, now)
            case Closed(reason):
                return self._close(reason, now)
            case Opened():
                self._closed = None
                return []
            case _:
                assert_never(event)

    # ---- leaving ----------------------------------------------------------------------------------------

    def _start(self, event: StartMigration, now: float) -> list[Action]:
        engine_id, epoch = event.request.engine_id, event.request.epoch
        if event.target == self.uid:
            raise CommandRefused("the request is at that instance already")
        if engine_id in self._source_of:
            raise CommandRefused(f"the request is being moved already ({self._source_of[engine_id]})")
        if (full := self._full()) is not None:
            raise CommandRefused(f"the source {full}")
        hop = max(epoch.hop, self._hops_used.get(engine_id, 0)) + 1
        self._hops_used[engine_id] = hop
        source = self.source_type(
            event, Epoch(epoch.attempt, hop), self._fingerprint, self._block_size, self._settings, now
        )
        self._sources[event.migration] = source
        self._source_of[engine_id] = event.migration
        return source.start()

    def _request_changed(self, event: RequestChange, now: float) -> list[Action]:
        actions: list[Action] = []
        migration = self._source_of.get(event.engine_id)
        if migration is not None:
            actions += self._sources[migration].handle(event, now)
        if isinstance(event, RequestFinished | RequestAborted):
            self._hops_used.pop(event.engine_id, None)
        if isinstance(event, RequestAborted):
            arriving = [t for t in self._targets.values() if t.prepare.engine_id == event.engine_id]
            actions += [action for t in arriving for action in t.handle(event, now)]
        return actions

    def _request_left(self, migration: str) -> None:
        source = self._sources.get(migration)
        if source is not None:
            self._hops_used.pop(source.request.engine_id, None)

    # ---- arriving ---------------------------------------------------------------------------------------

    def _hear(self, event: PeerMessage, now: float) -> list[Action]:
        peer, message = event.peer, event.message
        if isinstance(message, Prepare):
            return self._prepare(peer, message, now)
        known = self._sources.get(message.migration) or self._targets.get(message.migration)
        if known is not None and known.peer == peer:
            return known.handle(event, now)
        match message:
            case AbortRequest(_, engine_id):
                return [AbortEngineRequest(engine_id)]
            case ChangePriority(_, engine_id, priority):
                return [SetEnginePriority(engine_id, priority)]
            case Stage() | Grow() | Commit() | Ack() | GrowAck():
                reason = f"the migration is over or unknown at instance #{self.uid}"
                return [SendToPeer(peer, Abort(message.migration, reason))]
            case Refuse() | Accepted() | Abort():
                return []
            case _:
                assert_never(message)

    def _prepare(self, peer: int, prepare: Prepare, now: float) -> list[Action]:
        reason = self._refusal(prepare)
        if reason is not None:
            return [SendToPeer(peer, Refuse(prepare.migration, reason))]
        target = self.target_type(prepare, peer, self._block_size, self._settings, now)
        self._targets[prepare.migration] = target
        return target.start()

    def _refusal(self, prepare: Prepare) -> str | None:
        if self._closed is not None:
            return f"the target {self._closed}"
        if (full := self._full()) is not None:
            return f"the target {full}"
        return mismatch(prepare.fingerprint, self._fingerprint)

    def _close(self, reason: str, now: float) -> list[Action]:
        """From here on nothing comes in: what is on its way is given up."""
        self._closed = reason
        arriving = list(self._targets.items())
        why = f"the target {reason}"
        return [action for m, target in arriving for action in target.handle(CancelMigration(m, why), now)]

    def _full(self) -> str | None:
        num_active = len(self._sources) + len(self._targets)
        if num_active < self._settings.max_concurrent:
            return None
        return f"takes part in {num_active} migrations already (migration.max_concurrent)"

    def _make_room(self, num_blocks: int, now: float) -> list[Action]:
        """Cancel reservations, the newest first and those that were committed last."""
        able = [
            t for t in self._targets.values() if t.state in (TargetState.RECEIVING, TargetState.COMMITTED)
        ]
        able.sort(key=lambda target: target.state is TargetState.RECEIVING)
        actions: list[Action] = []
        while able and num_blocks > 0:
            target = able.pop()
            num_blocks -= target.num_reserved_blocks - target.num_blocks_skipped
            reason = "the target needed the reserved blocks for its own requests"
            actions += target.handle(CancelMigration(target.migration, reason), now)
        return actions

    # ---- both -------------------------------------------------------------------------------------------

    def _tell_one(
        self, migration: str, event: CopyDone | CopyFailed | CancelConfirmed | CancelMigration, now: float
    ) -> list[Action]:
        machine = self._sources.get(migration) or self._targets.get(migration)
        return machine.handle(event, now) if machine else []

    def _machines(self) -> Iterator[SourceHandover | TargetHandover]:
        yield from self._sources.values()
        yield from self._targets.values()

    def _forget_what_is_over(self) -> None:
        for migration in [m for m, source in self._sources.items() if source.is_over]:
            source = self._sources.pop(migration)
            del self._source_of[source.request.engine_id]
        for migration in [m for m, target in self._targets.items() if target.is_over]:
            del self._targets[migration]

    def next_deadline(self) -> float | None:
        """When a Tick is due at the latest; None: nothing waits."""
        return min((m.deadline for m in self._machines() if m.deadline is not None), default=None)

    def migration_of(self, engine_id: str) -> str | None:
        """The migration that takes this request away, if one is under way."""
        return self._source_of.get(engine_id)

    @property
    def is_full(self) -> bool:
        """No further migration can begin here, in either direction."""
        return self._full() is not None

    def states(self) -> dict[str, str]:
        """State of every migration that is not over here."""
        return {machine.migration: str(machine.state) for machine in self._machines()}

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        for machine in self._machines():
            assert not machine.is_over
            machine.check_integrity()
        assert len(self._sources) + len(self._targets) <= self._settings.max_concurrent
        assert set(self._source_of.values()) == self._sources.keys()
