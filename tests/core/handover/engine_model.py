"""A model of an engine: block pool with reference counts, prefix cache, requests whose tokens are known.

Every token is a function of request and place, every block holds the tokens that it was computed for, and a
token sampled on wrong blocks is -1: whatever is lost, doubled, swapped or overwritten is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from llumnix.core.handover.actions import Adopt, GrowReservation, Reserve
from llumnix.core.handover.epochs import Epoch
from llumnix.core.handover.events import (
    AdoptDone,
    Event,
    GrowFailed,
    Grown,
    Pressure,
    PriorityChanged,
    Quiesced,
    RequestAborted,
    RequestFinished,
    RequestPreempted,
    RequestSnapshot,
    Reserved,
    ReserveFailed,
    Stepped,
)
from llumnix.core.handover.owner_events import Outputs

from .pool_model import (
    BLOCK_SIZE,
    CHUNK_TOKENS,
    NUM_BLOCKS,
    NUM_SLOTS,
    Entry,
    Pool,
    Reservation,
    Spec,
    num_blocks_of,
)


class Engine:
    """`tell` leads to the instance's Handovers, `emit` to the API server."""

    def __init__(
        self,
        uid: int,
        specs: dict[str, Spec],
        tell: Callable[[Event], None],
        emit: Callable[[Outputs], None],
        touched: Callable[[], set[int]],
    ) -> None:
        self.uid = uid
        self.specs = specs
        self.tell = tell
        self.emit = emit
        self.pool = Pool(touched)
        self.requests: dict[str, Entry] = {}
        self.reservations: dict[str, Reservation] = {}
        self.pins: dict[tuple[str, int], list[int]] = {}
        self.ids_seen: set[str] = set()

    # ---- requests ----

    def add(self, spec: Spec, epoch: Epoch, outputs: Iterable[int]) -> None:
        entry = Entry(spec, epoch, list(outputs), priority=0)
        self._see(entry.id)
        self.requests[entry.id] = entry

    def _see(self, this: str) -> None:
        assert this not in self.ids_seen, f"engine {self.uid} sees {this} twice"
        self.ids_seen.add(this)

    def can_step(self, entry: Entry) -> bool:
        return entry.in_flight > 0 or entry.frozen_from is None

    def step(self, entry: Entry) -> None:
        if entry.in_flight:
            self._land(entry)
        elif entry.frozen_from is None and not entry.running:
            entry.running = self._num_free_slots() > 0
        elif entry.frozen_from is None:
            self._launch(entry)

    def _no_room(self, num_missing: int, num_free: int) -> str | None:
        if self._num_free_slots() < 1:
            return "the target has no free place in its batch"
        if num_missing > num_free:
            return f"the target has {num_free} free blocks, the request needs {num_missing}"
        return None

    def _num_free_slots(self) -> int:
        num_running = sum(entry.running for entry in self.requests.values())
        return NUM_SLOTS - num_running - len(self.reservations)

    def _launch(self, entry: Entry) -> None:
        count = min(CHUNK_TOKENS, len(entry.tokens()) - entry.computed)
        while True:
            num_missing = num_blocks_of(entry.computed + count) - len(entry.blocks)
            blocks = self.pool.take(max(num_missing, 0))
            if blocks is not None:
                entry.blocks += blocks
                entry.in_flight = count
                return
            free = len(self.pool.freed)
            self.tell(Pressure(num_missing - free))
            if len(self.pool.freed) == free:
                victim = [e for e in self.requests.values() if e.running and e.frozen_from is None][-1]
                self.preempt(victim)
                if victim is entry:
                    return

    def _land(self, entry: Entry) -> None:
        tokens = entry.tokens()
        for place in range(entry.computed, entry.computed + entry.in_flight):
            self.pool.contents[entry.blocks[place // BLOCK_SIZE]][place % BLOCK_SIZE] = tokens[place]
        entry.computed += entry.in_flight
        entry.in_flight = 0
        self._register(entry)
        if entry.computed == len(tokens) and self._sample(entry):
            return
        if entry.frozen_from is not None:
            self._quiesce(entry)
        else:
            self.tell(Stepped(entry.id, len(entry.tokens()), entry.computed))

    def _sample(self, entry: Entry) -> bool:
        """One more token; True if it was the last one."""
        place = len(entry.outputs)
        is_right = self.holds(entry.blocks, entry.tokens(), entry.computed)
        token = entry.spec.output(place, entry.epoch.attempt) if is_right else -1
        entry.outputs.append(token)
        finished = len(entry.outputs) == entry.spec.num_outputs
        self.emit(
            Outputs(self.uid, entry.spec.name, entry.epoch, place, (token,), "length" if finished else None)
        )
        if finished:
            self._leave(entry)
            self.tell(RequestFinished(entry.id))
        return finished

    def holds(self, blocks: list[int], tokens: list[int], count: int) -> bool:
        """Whether these blocks have the KV of the first `count` tokens."""
        return all(
            self.pool.contents[blocks[i // BLOCK_SIZE]][i % BLOCK_SIZE] == tokens[i] for i in range(count)
        )

    def _hashes(self, tokens: list[int]) -> tuple[bytes, ...]:
        full = range(BLOCK_SIZE, len(tokens) + 1, BLOCK_SIZE)
        return tuple(repr(tokens[:end]).encode() for end in full)

    def _register(self, entry: Entry) -> None:
        for block, key in zip(entry.blocks, self._hashes(entry.tokens()[: entry.computed]), strict=False):
            self.pool.cache.setdefault(key, block)

    def _leave(self, entry: Entry) -> None:
        del self.requests[entry.id]
        self.pool.give(entry.blocks)

    def preempt(self, entry: Entry) -> None:
        self.pool.give(entry.blocks)
        entry.blocks = []
        entry.computed = entry.in_flight = 0
        entry.running = False
        self.tell(RequestPreempted(entry.id))

    def abort(self, this: str) -> None:
        entry = self.requests.get(this)
        if entry is not None:
            self._leave(entry)
        self.tell(RequestAborted(this))

    def set_priority(self, this: str, priority: int) -> None:
        entry = self.requests.get(this)
        if entry is not None:
            entry.priority = priority
            self.tell(PriorityChanged(this, priority))

    # ---- leaving ----

    def snapshot(self, entry: Entry) -> RequestSnapshot:
        tokens = entry.tokens()
        return RequestSnapshot(
            request_id=entry.spec.name,
            epoch=entry.epoch,
            owner=0,
            priority=entry.priority,
            adapter="",
            num_tokens=len(tokens),
            num_settled_tokens=entry.computed,
            block_hashes=self._hashes(tokens),
            output_tokens=tuple(entry.outputs),
            request=b"the request",
        )

    def pin(self, migration: str, copy: int, blocks: list[int]) -> None:
        self.pins[migration, copy] = blocks
        self.pool.share(blocks)

    def unpin(self, migration: str, copy: int) -> None:
        self.pool.give(self.pins.pop((migration, copy)))

    def freeze(self, this: str, from_output: int) -> None:
        entry = self.requests[this]
        assert entry.frozen_from is None
        entry.frozen_from = from_output
        if not entry.in_flight:
            self._quiesce(entry)

    def _quiesce(self, entry: Entry) -> None:
        assert entry.frozen_from is not None
        since = tuple(entry.outputs[entry.frozen_from :])
        state = b"sampled %d" % len(entry.outputs)
        self.tell(Quiesced(entry.id, since, len(entry.tokens()), entry.computed, state))

    def unfreeze(self, this: str) -> None:
        assert self.requests[this].frozen_from is not None
        self.requests[this].frozen_from = None

    def release(self, this: str) -> None:
        entry = self.requests[this]
        assert entry.frozen_from is not None and not entry.in_flight
        self._leave(entry)

    # ---- arriving ----

    def reserve(self, action: Reserve) -> None:
        prepare = action.prepare
        cached: list[int] = []
        for key in prepare.block_hashes[: (prepare.num_tokens - 1) // BLOCK_SIZE]:
            if key not in self.pool.cache:
                break
            cached.append(self.pool.cache[key])
        num_free = len(set(self.pool.freed) - set(cached))
        reason = self._no_room(prepare.num_blocks - len(cached), num_free)
        if reason is not None:
            self.tell(ReserveFailed(prepare.migration, reason))
            return
        self._see(prepare.engine_id)
        self.pool.share(cached)
        fresh = self.pool.take(prepare.num_blocks - len(cached))
        assert fresh is not None
        self.reservations[prepare.migration] = Reservation(prepare, cached + fresh, len(cached))
        self.tell(Reserved(prepare.migration, len(cached), prepare.num_blocks))

    def grow(self, action: GrowReservation) -> None:
        reservation = self.reservations[action.migration]
        fresh = self.pool.take(action.num_blocks - len(reservation.blocks))
        if fresh is None:
            self.tell(GrowFailed(action.migration, "the target has no more free blocks"))
            return
        reservation.blocks += fresh
        self.tell(Grown(action.migration, len(reservation.blocks)))

    def free_reservation(self, migration: str) -> None:
        self.pool.give(self.reservations.pop(migration).blocks)

    def adopt(self, action: Adopt) -> None:
        prepare, commit = action.prepare, action.commit
        reservation = self.reservations.pop(prepare.migration)
        outputs = [*prepare.output_tokens, *commit.output_tokens]
        entry = Entry(self.specs[prepare.request_id], prepare.epoch, outputs, commit.priority)
        assert all(entry.spec.is_output(token, k) for k, token in enumerate(outputs)), "tokens were lost"
        assert commit.state == b"sampled %d" % len(outputs)
        assert self.holds(reservation.blocks, entry.tokens(), commit.num_computed_tokens), "KV is wrong"
        entry.computed = commit.num_computed_tokens
        num_kept = num_blocks_of(entry.computed)
        entry.blocks = reservation.blocks[:num_kept]
        self.pool.give(reservation.blocks[num_kept:])
        self.requests[entry.id] = entry
        self._register(entry)
        self.tell(AdoptDone(prepare.migration))

    # ---- what must hold ----

    def check_integrity(self) -> None:
        holders: Counter[int] = Counter()
        for entry in self.requests.values():
            holders.update(entry.blocks)
        for reservation in self.reservations.values():
            holders.update(reservation.blocks)
        for pinned in self.pins.values():
            holders.update(pinned)
        assert [holders[block] for block in range(NUM_BLOCKS)] == self.pool.refs, "a block is leaked"
        assert sorted(self.pool.freed) == [b for b in range(NUM_BLOCKS) if self.pool.refs[b] == 0]
        assert not self.touched_free(), "a free block may still be touched by a transfer"

    def touched_free(self) -> set[int]:
        return {block for block in self.pool.touched() if self.pool.refs[block] == 0}
