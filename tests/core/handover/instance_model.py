"""An instance of the model: an engine, its Handovers, and what the llumlet does between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from llumnix.core.handover.actions import (
    AbortEngineRequest,
    Action,
    Adopt,
    CancelCopy,
    CopyBlocks,
    FreeReservation,
    Freeze,
    GrowReservation,
    MigrationEnded,
    ReceiveBlocks,
    Release,
    ReleaseCopy,
    Reserve,
    SendToPeer,
    SetEnginePriority,
    ToOwner,
    Unfreeze,
)
from llumnix.core.handover.events import (
    Event,
    PeerMessage,
)
from llumnix.core.handover.messages import Adopted, Moved
from llumnix.core.handover.owner_events import (
    AdoptedAt,
    MovedFrom,
    Outputs,
    OwnerEvent,
)

from .engine_model import Engine
from .pool_model import BLOCK_SIZE
from .transfers import Move

if TYPE_CHECKING:
    from .world import World


class Instance:
    def __init__(self, world: World, uid: int) -> None:
        self.uid = uid
        self.world = world
        dtype = "float16" if uid % 7 == 6 else "float32"
        self.handovers = world.handovers_type(uid, (("dtype", dtype),), BLOCK_SIZE, world.settings)
        self.engine = Engine(uid, world.specs, self.tell, self.emit, lambda: world.touched(uid))
        self.tasks: deque[Reserve | GrowReservation | Adopt] = deque()
        self.alive = True
        self.cut_off = False  # from the API server

    def emit(self, outputs: Outputs) -> None:
        if not self.cut_off:
            self.world.to_owner[self.uid].append(outputs)

    def tell(self, event: Event) -> None:
        for action in self.handovers.handle(event, self.world.now):
            self.perform(action)

    def perform(self, action: Action) -> None:
        engine, world = self.engine, self.world
        match action:
            case SendToPeer(peer, message):
                world.send(self.uid, peer, PeerMessage(self.uid, message))
            case ToOwner(_, Moved() as moved):
                self._notify(MovedFrom(self.uid, moved))
            case ToOwner(_, Adopted() as adopted):
                self._notify(AdoptedAt(self.uid, adopted))
            case CopyBlocks(migration, copy, peer, this, first, count, _):
                blocks = engine.requests[this].blocks[first : first + count]
                assert len(blocks) == count > 0
                engine.pin(migration, copy, blocks)
                world.transfer(migration, copy, self.uid, peer).source.open(blocks)
            case ReceiveBlocks(migration, copy, peer, first, count):
                blocks = engine.reservations[migration].blocks[first : first + count]
                assert len(blocks) == count > 0
                assert first >= engine.reservations[migration].num_cached, "writes into shared blocks"
                world.transfer(migration, copy, peer, self.uid).target.open(blocks)
            case ReleaseCopy(migration, copy):
                engine.unpin(migration, copy)
            case CancelCopy(migration, copy):
                transfer = world.transfers[migration, copy]
                side = transfer.source if transfer.source.uid == self.uid else transfer.target
                side.cancelled = True
            case Freeze(_, this, from_output):
                engine.freeze(this, from_output)
            case Unfreeze(this):
                engine.unfreeze(this)
            case Release(this):
                engine.release(this)
            case Reserve() | GrowReservation() | Adopt():
                self.tasks.append(action)
            case FreeReservation(migration):
                engine.free_reservation(migration)
            case AbortEngineRequest(this):
                engine.abort(this)
            case SetEnginePriority(this, priority):
                engine.set_priority(this, priority)
            case MigrationEnded(_, outcome, reason):
                assert reason
                world.outcomes[outcome] += 1
                world.reasons.add(reason)

    def _notify(self, event: OwnerEvent) -> None:
        if not self.cut_off:
            self.world.to_owner[self.uid].append(event)

    def do_task(self) -> None:
        match self.tasks.popleft():
            case Reserve() as action:
                self.engine.reserve(action)
            case GrowReservation() as action:
                self.engine.grow(action)
            case Adopt() as action:
                self.engine.adopt(action)

    def moves(self) -> Iterator[Move]:
        if self.tasks:
            yield "task", self.do_task
        for entry in self.engine.requests.values():
            if self.engine.can_step(entry):
                yield "step", partial(self.engine.step, entry)

    def check_integrity(self) -> None:
        self.handovers.check_integrity()
        self.engine.check_integrity()
        states = self.handovers.states()
        assert self.engine.reservations.keys() <= states.keys(), "a reservation nobody will free"
        for entry in self.engine.requests.values():
            migration = self.handovers.migration_of(entry.id)
            frozen = states.get(migration or "") in ("freezing", "last_growing", "last_copying", "committing")
            assert (entry.frozen_from is not None) == frozen, "a request is frozen for no migration"
        pins = {(m, c) for m, c in self.engine.pins if m not in states}
        assert not pins, "blocks are pinned for no migration"
