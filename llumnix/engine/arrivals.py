"""Requests that are on their way to an instance: what its engine does for the target's state machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from llumnix.core.handover import actions as act
from llumnix.core.handover import events as ev
from llumnix.engine.early_receives import EarlyReceives
from llumnix.engine.migration.adopt import Reservation, Target
from llumnix.engine.migration.state import FinalState, PrepareInfo, decode
from llumnix.errors import RefusedError

_READY_WITHIN_S = 5.0
"""How long feeding a grammar the output so far may take, once it is compiled."""


@dataclass(slots=True)
class _Preparing:
    """Blocks are reserved; PREPARE is answered once the grammar has caught up."""

    reservation: Reservation
    num_blocks: int
    deadline: float


@dataclass(slots=True)
class Arrivals:
    """For the engine thread. Every action is answered by one event, Reserve perhaps in a later turn."""

    target: Target
    block_size: int
    clock: Callable[[], float]
    on_engine_thread: Callable[[Callable[[], object]], None]
    tell: Callable[[ev.Event], None]
    early: EarlyReceives | None = None
    _reserved: dict[str, Reservation] = field(default_factory=dict)
    _preparing: dict[str, _Preparing] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._reserved)

    def block_ids(self, migration: str) -> Sequence[int]:
        return self._reserved[migration].block_ids

    def reserve(self, action: act.Reserve) -> None:
        prepare = action.prepare
        try:
            info = decode(msgspec.msgpack.decode(prepare.request, type=list[bytes]), PrepareInfo)
            num_ahead = prepare.num_blocks * self.block_size - info.num_computed_tokens
            reservation = self.target.reserve(info, prepare.engine_id, max(0, num_ahead))
        except (RefusedError, msgspec.ValidationError) as error:
            self.tell(ev.ReserveFailed(prepare.migration, str(error)))
            return
        # Nothing to copy yet: the scheduler will find blocks for it as for any that waits.
        num_blocks = len(reservation.block_ids) if info.num_computed_tokens else prepare.num_blocks
        self._reserved[prepare.migration] = reservation
        deadline = self.clock() + _READY_WITHIN_S
        self._preparing[prepare.migration] = _Preparing(reservation, num_blocks, deadline)
        self._answer_if_ready(prepare.migration)

    def grow(self, action: act.GrowReservation) -> None:
        migration, num_blocks = action.migration, action.num_blocks
        reservation = self._reserved[migration]
        if not reservation.info.num_computed_tokens:
            self.tell(ev.Grown(migration, num_blocks))
        elif self.target.grow(reservation, num_blocks * self.block_size):
            self._allow_copies(migration)
            self.tell(ev.Grown(migration, max(num_blocks, len(reservation.block_ids))))
        else:
            self.tell(ev.GrowFailed(migration, "the target has not enough free blocks"))

    def adopt(self, action: act.Adopt) -> None:
        migration, commit = action.prepare.migration, action.commit
        try:
            self._once_unwritten(migration, lambda: None)  # from here on no copy can begin
            if self.early is not None and not self.early.is_quiet(migration):
                raise RefusedError("a copy came that the source has not told of")
            final = decode(msgspec.msgpack.decode(commit.state, type=list[bytes]), FinalState)
            final = msgspec.structs.replace(final, priority=commit.priority)
            self.target.adopt(self._reserved[migration], final)
        except (RefusedError, msgspec.ValidationError) as error:
            self.tell(ev.AdoptFailed(migration, str(error)))
            return
        del self._reserved[migration]
        self.tell(ev.AdoptDone(migration))

    def free(self, migration: str) -> None:
        """Give the blocks back, once what began to be received early is over."""
        self._once_unwritten(migration, lambda: self.target.free(self._reserved.pop(migration)))

    def _allow_copies(self, migration: str) -> None:
        reservation = self._reserved[migration]
        if self.early is not None and reservation.info.num_computed_tokens:
            self.early.allow(migration, reservation.num_hit_blocks, reservation.block_ids)

    def _once_unwritten(self, migration: str, then: Callable[[], None]) -> None:
        if self.early is None:
            then()
        else:
            self.early.close(migration, then)

    def _answer_if_ready(self, migration: str) -> None:
        preparing = self._preparing[migration]
        reservation = preparing.reservation
        try:
            if not self.target.is_ready(reservation):
                if self.clock() < preparing.deadline:
                    ask_again = partial(self.on_engine_thread, partial(self._answer_if_ready, migration))
                    self.target.when_compiled(reservation, ask_again)
                    return
                raise RefusedError(f"its grammar was not ready within {_READY_WITHIN_S:g} s")
        except RefusedError as error:
            del self._preparing[migration]
            self.free(migration)
            self.tell(ev.ReserveFailed(migration, str(error)))
            return
        del self._preparing[migration]
        self._allow_copies(migration)
        self.tell(ev.Reserved(migration, reservation.num_hit_blocks, preparing.num_blocks))
