"""Copies that an instance begins to receive as soon as their Stage comes, while a step of its own still runs.

A migration's state machine hears of the Stage between two steps only: were the copy to wait for that, the
last one would cost the request a whole step of the target.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

from llumnix.core.handover.messages import Stage
from llumnix.engine.transport import OnDone, Outcome, Transfer, TransportError

CopyKey = tuple[str, int]
"""A migration and the number of its copy."""


@runtime_checkable
class EarlyTransports(Protocol):
    """BlockTransports (engine.copies) of which any thread may call these."""

    def fence(self) -> Any:
        """Marks what the calling thread's device was given so far (KVBlocks.fence)."""

    def receive(
        self, peer: bytes, transfer_id: str, block_ids: Sequence[int], on_done: OnDone, fence: Any = None
    ) -> Transfer:
        """Nothing is written before what `fence` marks is done."""

    def cancel(self, transfer: Transfer) -> None: ...

    def ended(self, transfer_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Room:
    """Blocks of a reservation, by their place in the sequence."""

    block_ids: Sequence[int]
    first_block: int
    """Those before are the prefix cache's: not to be written."""
    fence: Any
    """Marks the work in which these blocks may still have been somebody else's."""

    def blocks_of(self, stage: Stage) -> Sequence[int]:
        """Empty if the stage does not keep to the reservation."""
        end = stage.first_block + stage.num_blocks
        fits = self.first_block <= stage.first_block and end <= len(self.block_ids)
        return self.block_ids[stage.first_block : end] if fits else ()


@dataclass(slots=True)
class EarlyReceive:
    """A copy that began before its Stage was heard."""

    transfer: Transfer
    outcome: Outcome | None = None


@dataclass(slots=True)
class EarlyReceives:
    """`begin` is for the inbox's thread, the rest for the engine's.

    Invariant: a transfer that began here is either taken over (`take`), or keeps its reservation (`close`).
    """

    transports: EarlyTransports
    on_engine_thread: Callable[[Callable[[], object]], None]
    on_end: Callable[[CopyKey, Outcome], None]
    """Told, on the engine thread, of the end of what was taken over."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _rooms: dict[str, _Room] = field(default_factory=dict)
    _begun: dict[CopyKey, EarlyReceive] = field(default_factory=dict)
    """Not taken over."""
    _closing: dict[str, Callable[[], None]] = field(default_factory=dict)

    def allow(self, migration: str, first_block: int, block_ids: Sequence[int]) -> None:
        """Stages of this migration may come in, from `first_block` on; again once there are more blocks."""
        room = _Room(tuple(block_ids), first_block, self.transports.fence())
        with self._lock:
            self._rooms[migration] = room

    def begin(self, stage: Stage, peer: bytes) -> None:
        """Expect the stage's blocks, if its migration allows it; what cannot begin fails when it is heard."""
        key = (stage.migration, stage.copy)
        with self._lock:
            room = self._rooms.get(stage.migration)
            blocks = room.blocks_of(stage) if room is not None else ()
            if room is None or not blocks or key in self._begun:
                return
            try:
                transfer = self.transports.receive(
                    peer, transfer_id(key), blocks, partial(self._done, key), room.fence
                )
            except TransportError:
                return
            self._begun[key] = EarlyReceive(transfer)

    def take(self, key: CopyKey) -> EarlyReceive | None:
        """The copy, if it has begun, as the caller's from now on."""
        with self._lock:
            return self._begun.pop(key, None)

    def is_quiet(self, migration: str) -> bool:
        """Whether no copy of it has begun that was not taken over."""
        with self._lock:
            return not any(of == migration for of, _ in self._begun)

    def close(self, migration: str, then: Callable[[], None]) -> None:
        """Let nothing begin any more; `then` is called once nothing here writes its blocks."""
        with self._lock:
            self._rooms.pop(migration, None)
            left = [early for (of, _), early in self._begun.items() if of == migration]
        self._closing[migration] = then
        for early in left:
            if early.outcome is None:
                self.transports.cancel(early.transfer)
        self._end_if_quiet(migration)

    def _done(self, key: CopyKey, _: Transfer, outcome: Outcome) -> None:
        self.on_engine_thread(partial(self._ended, key, outcome))

    def _ended(self, key: CopyKey, outcome: Outcome) -> None:
        with self._lock:
            early = self._begun.get(key)
        if early is None:
            self.on_end(key, outcome)
            return
        early.outcome = outcome
        self._end_if_quiet(key[0])

    def _end_if_quiet(self, migration: str) -> None:
        if migration not in self._closing:
            return
        with self._lock:
            left = {key: early for key, early in self._begun.items() if key[0] == migration}
            if any(early.outcome is None for early in left.values()):
                return
            for key in left:
                del self._begun[key]
        for key in left:
            self.transports.ended(transfer_id(key))
        self._closing.pop(migration)()


def transfer_id(key: CopyKey) -> str:
    """The transports' name for a copy."""
    return f"{key[0]}/{key[1]}"
