"""All unfinished requests of an API server: their owners, where they run, what their clients are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest

from llumnix.core.handover.epochs import Epoch, engine_id
from llumnix.core.handover.messages import Adopted, Moved, Notice
from llumnix.core.handover.owner import RequestOwner, answer_to_stray
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
from llumnix.core.hold_queue import HeldRequest, HoldQueue
from llumnix.core.prefixes import prefix_keys


@dataclass(slots=True)
class Entry:
    """One request, as its client sent it, and its owner."""

    request: EngineCoreRequest
    owner: RequestOwner
    runs: list[str] = field(default_factory=list)
    """Engine-side ids of the present attempt."""
    waiting: StartAttempt | None = None
    """The attempt that no instance has room for yet; it is in the hold queue."""

    @property
    def is_resumed(self) -> bool:
        """Its present attempt is not the first: it has lost its instance."""
        return self.owner.attempt > 0


@dataclass(slots=True)
class Run:
    """One epoch of a request at one instance, and how far its outputs have come."""

    entry: Entry
    uid: int
    epoch: Epoch
    next_offset: int


@dataclass(frozen=True, slots=True)
class Placed:
    uid: int


@dataclass(frozen=True, slots=True)
class NotPlaced:
    reason: str
    is_any_open: bool
    """An instance is there and will have room some time."""
    is_any_refuge: bool = False
    """The same for requests that have lost theirs."""


class Place(Protocol):
    """Dispatches a request under its engine-side id, with its output tokens so far and its prefix keys."""

    def __call__(
        self,
        request: EngineCoreRequest,
        output_tokens: tuple[int, ...],
        prefix: tuple[int, ...],
        *,
        resumed: bool,
    ) -> Placed | NotPlaced: ...


class RequestBook:
    """Not thread-safe: all on the API server's event loop. `now` is passed in.

    Invariants: every run's entry is in the book, under the request id that its engine-side id begins with;
    an entry waits exactly when its request id is in the hold queue.
    """

    def __init__(
        self,
        settings: HandoverSettings,
        held: HoldQueue,
        *,
        place: Place,
        abort: Callable[[int, list[str]], None],
        deliver: Callable[[list[EngineCoreOutput]], None],
        fail: Callable[[str, str], None],
    ) -> None:
        """`abort(uid, engine ids)`, `deliver(outputs)` and `fail(request id, reason)` carry out."""
        self._settings = settings
        self._held = held
        self._is_placing = False
        self._refusal = NotPlaced("requests before it wait for room", is_any_open=True)
        """Why the request that was tried last found no place."""
        self._place = place
        self._abort = abort
        self._deliver = deliver
        self._fail = fail
        self._entries: dict[str, Entry] = {}
        self._runs: dict[str, Run] = {}
        self._timed: set[str] = set()
        """Requests whose owner waits for a deadline."""

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, request: EngineCoreRequest, now: float) -> str | None:
        """Take in and dispatch a request; the reason if no instance can take it, and then it is not here."""
        entry = Entry(request, RequestOwner(request.request_id, self._settings, now))
        self._entries[request.request_id] = entry
        self._carry_out(entry, entry.owner.start(), now)
        if entry.waiting is None or self._refusal.is_any_open:
            return None
        self._forget(entry)
        return self._refusal.reason

    def run_of(self, request_id: str) -> tuple[int, str] | None:
        """(uid, engine-side id) of where a request runs, for further input of a streaming session."""
        entry = self._entries.get(request_id)
        if entry is None or entry.owner.uid is None or entry.owner.lineage.latest is None:
            return None
        epoch = Epoch(entry.owner.attempt, entry.owner.lineage.latest.number)
        return entry.owner.uid, engine_id(request_id, epoch)

    def abort(self, request_ids: Iterable[str], now: float) -> None:
        """The clients, or operators, want no more of these."""
        for request_id in request_ids:
            self._tell(request_id, ClientAborted(), now)

    def take(self, uid: int, outputs: list[EngineCoreOutput], now: float) -> list[EngineCoreOutput]:
        """What of a step's outputs is for clients, under their request ids, in order."""
        mine: list[EngineCoreOutput] = []
        for output in outputs:
            run = self._runs.get(output.request_id)
            if run is None or run.uid != uid:
                self._answer_stray(uid, output)
                continue
            offset = run.next_offset
            run.next_offset += len(output.new_token_ids)
            entry = run.entry
            if output.finish_reason is None and entry.owner.accept(
                uid, run.epoch, offset, output.new_token_ids
            ):
                output.request_id = entry.request.request_id
                mine.append(output)
                continue
            finish = None if output.finish_reason is None else str(output.finish_reason)
            event = Outputs(
                uid, entry.request.request_id, run.epoch, offset, tuple(output.new_token_ids), finish, output
            )
            mine += self._handle(entry, event, now)
        return mine

    def notice(self, uid: int, notice: Notice, now: float) -> None:
        """MOVED or ADOPTED came, behind or in front of the tokens it speaks of."""
        entry = self._entries.get(notice.request_id)
        event: OwnerEvent = MovedFrom(uid, notice) if isinstance(notice, Moved) else AdoptedAt(uid, notice)
        if entry is None:
            self._abort_at(answer_to_stray(event))
            return
        if isinstance(notice, Adopted):
            of_engine = engine_id(notice.request_id, notice.epoch)
            self._add_run(of_engine, Run(entry, uid, notice.epoch, notice.offset))
        self._tell(notice.request_id, event, now)

    def instance_lost(self, uid: int, reason: str, now: float, *, fenced: bool) -> None:
        """The instance is dead (fenced), or lives and has forgotten what it had of us."""
        event: OwnerEvent = Fenced(uid, reason) if fenced else Forgotten(uid, reason)
        for of_engine in [e for e, run in self._runs.items() if run.uid == uid]:
            del self._runs[of_engine]
        for request_id in list(self._entries):
            self._tell(request_id, event, now)

    def place_held(self, now: float) -> None:
        """An instance may have room, or there may be none any more: place what waits, in order."""
        if self._is_placing or not self._held:
            return  # called from within: the loop below goes on with what is new
        self._is_placing = True
        try:
            self._held.place(lambda held: self._try_to_place(held, now), now)
            if not self._refusal.is_any_open and self._refusal.is_any_refuge:
                self._held.place(lambda held: self._try_to_place(held, now), now, only_resumed=True)
        finally:
            self._is_placing = False

    def set_priority(self, request_id: str, engine_priority: int) -> bool:
        """Give a request that waits for room another class; False if it does not wait here."""
        if not self._held.set_priority(request_id, engine_priority):
            return False
        self.priority_changed(request_id, engine_priority)
        return True

    def priority_changed(self, request_id: str, engine_priority: int) -> None:
        """The request has another class from now on; a further attempt begins with it."""
        entry = self._entries.get(request_id)
        if entry is not None:
            entry.request = msgspec.structs.replace(entry.request, priority=engine_priority)

    def held(self) -> Iterator[tuple[EngineCoreRequest, StartAttempt]]:
        """Requests that wait for room, in order, with their attempts."""
        for held in self._held:
            entry = self._entries[held.key]
            assert entry.waiting is not None
            yield entry.request, entry.waiting

    def tick(self, now: float) -> None:
        """Time passed; call it some times a second."""
        for request_id in list(self._timed):
            self._tell(request_id, OwnerTick(), now)

    # ---- owners -----------------------------------------------------------------------------------------

    def _tell(self, request_id: str, event: OwnerEvent, now: float) -> None:
        entry = self._entries.get(request_id)
        if entry is not None:
            outputs = self._handle(entry, event, now)
            if outputs:
                self._deliver(outputs)

    def _handle(self, entry: Entry, event: OwnerEvent, now: float) -> list[EngineCoreOutput]:
        return self._carry_out(entry, entry.owner.handle(event, now), now)

    def _carry_out(self, entry: Entry, actions: list[OwnerAction], now: float) -> list[EngineCoreOutput]:
        outputs: list[EngineCoreOutput] = []
        failed: str | None = None
        for action in actions:
            if isinstance(action, Deliver):
                outputs.append(_for_client(entry, action))
            elif isinstance(action, StartAttempt):
                self._drop_runs(entry)
                self._start(entry, action, now)
            elif isinstance(action, Fail):
                failed = action.reason
        self._abort_at(actions)
        self._settle(entry)
        if failed is not None:
            self._fail(entry.request.request_id, failed)
        return outputs

    def _settle(self, entry: Entry) -> None:
        request_id = entry.request.request_id
        if entry.owner.is_over:
            self._forget(entry)
        elif entry.owner.deadline is not None:
            self._timed.add(request_id)
        else:
            self._timed.discard(request_id)

    def _start(self, entry: Entry, attempt: StartAttempt, now: float) -> None:
        request = entry.request
        entry.waiting = attempt
        num_tokens = len(request.prompt_token_ids or ()) + len(attempt.output_tokens)
        prefix = _prefix_of(request)
        self._held.push(
            request.request_id,
            request.priority,
            num_tokens,
            request.arrival_time,
            prefix,
            is_resumed=entry.is_resumed,
        )
        self.place_held(now)
        if entry.waiting is attempt:
            self._tell_held(entry, now)

    def _try_to_place(self, held: HeldRequest, now: float) -> bool:
        entry = self._entries[held.key]
        attempt = entry.waiting
        assert attempt is not None
        of_engine = engine_id(held.key, attempt.epoch)
        sent = msgspec.structs.replace(entry.request, request_id=of_engine)
        placed = self._place(sent, attempt.output_tokens, held.prefix, resumed=held.is_resumed)
        if isinstance(placed, NotPlaced):
            self._tell_all_held(placed, now)
            self._tell_held(entry, now)
            return False
        entry.waiting = None
        self._add_run(of_engine, Run(entry, placed.uid, attempt.epoch, len(attempt.output_tokens)))
        event = AttemptPlaced(placed.uid, held.key, attempt.epoch)
        self._tell(held.key, event, now)
        return True

    def _tell_all_held(self, refusal: NotPlaced, now: float) -> None:
        """Requests wait for room without a limit, for an instance with one."""
        former, self._refusal = self._refusal, refusal
        if (refusal.is_any_open, refusal.is_any_refuge) != (former.is_any_open, former.is_any_refuge):
            for held in self._held:
                self._tell_held(self._entries[held.key], now)

    def _tell_held(self, entry: Entry, now: float) -> None:
        assert entry.waiting is not None
        refusal = self._refusal
        is_any_left = refusal.is_any_open or (entry.is_resumed and refusal.is_any_refuge)
        event = AttemptHeld(entry.waiting.epoch, refusal.reason, is_any_left)
        self._tell(entry.request.request_id, event, now)

    def _forget(self, entry: Entry) -> None:
        request_id = entry.request.request_id
        self._entries.pop(request_id, None)
        self._timed.discard(request_id)
        self._held.discard(request_id)
        self._drop_runs(entry)

    def _add_run(self, of_engine: str, run: Run) -> None:
        self._runs[of_engine] = run
        run.entry.runs.append(of_engine)

    def _drop_runs(self, entry: Entry) -> None:
        for of_engine in entry.runs:
            self._runs.pop(of_engine, None)
        entry.runs.clear()

    # ---- strays -----------------------------------------------------------------------------------------

    def _answer_stray(self, uid: int, output: EngineCoreOutput) -> None:
        """Somebody runs what nobody waits for (a late abort, a revived instance): tell it to stop."""
        if output.finish_reason is None:
            self._abort(uid, [output.request_id])

    def _abort_at(self, actions: list[OwnerAction]) -> None:
        by_instance: dict[int, list[str]] = {}
        for action in actions:
            if isinstance(action, AbortAt):
                by_instance.setdefault(action.uid, []).append(action.engine_id)
        for uid, of_engine in by_instance.items():
            self._abort(uid, of_engine)


def _prefix_of(request: EngineCoreRequest) -> tuple[int, ...]:
    """Keys of what an instance's prefix cache can tell apart by tokens; images stand behind equal ones."""
    if not request.prompt_token_ids or request.mm_features:
        return ()
    adapter = request.lora_request.lora_name if request.lora_request else None
    return prefix_keys(request.prompt_token_ids, repr((adapter, request.cache_salt)))


def _for_client(entry: Entry, deliver: Deliver) -> EngineCoreOutput:
    """The engine's output under the client's id, without the tokens that the client has."""
    output = deliver.output.payload
    assert isinstance(output, EngineCoreOutput)
    output.request_id = entry.request.request_id
    if deliver.num_doubled:
        output.new_token_ids = output.new_token_ids[deliver.num_doubled :]
        if output.new_logprobs is not None:
            fresh = len(output.new_token_ids)
            output.new_logprobs = output.new_logprobs.slice_request(deliver.num_doubled, fresh)
    return output
