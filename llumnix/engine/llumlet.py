"""The llumlet: carries out on one engine what its handover state machines want done.

Everything here runs on the engine thread between two steps. The transport's threads and the inbox hand
their news in through InstanceCore.on_engine_thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, assert_never

import msgspec

from llumnix.core.events import CommandRefused
from llumnix.core.handover import actions as act
from llumnix.core.handover import events as ev
from llumnix.core.handover.epochs import split_engine_id
from llumnix.core.handover.host import Handovers
from llumnix.core.handover.messages import Adopted, Commit, Prepare
from llumnix.core.handover.settings import HandoverSettings
from llumnix.engine.migration.adopt import Reservation
from llumnix.engine.migration.port import MigrationPort
from llumnix.engine.migration.state import FinalState, PrepareInfo, decode, encode
from llumnix.engine.peers import Letter, Receiving
from llumnix.engine.transport import Outcome, OutcomeKind, Transfer, TransportError
from llumnix.engine.transport_set import TransportSet
from llumnix.errors import RefusedError, UnknownTargetError
from llumnix.log import get_logger
from llumnix.wire import MigrationNews, NoticeFrom, PeerAddress

logger = get_logger(__name__)

MigrationState = Literal["prepare", "committed", "aborted"]

NO_TRANSPORT = "instances with more than one worker (tensor or pipeline parallel) do not move requests yet"
_ADOPT_WITHIN_S = 1.5
_RETRY_REFUSED_AFTER_S = 1.0


@dataclass(slots=True)
class Leaving:
    """A migration away from here, with what its books and its news need."""

    migration: str
    engine_id: str
    peer: int
    reason: str
    num_preemptions: int
    started_at: float
    frozen_at: float | None = None
    froze_from: int | None = None
    """Freeze is asked for and not answered: output tokens from this one on are still to be told."""
    copy_s: float = 0.0
    num_bytes: int = 0


@dataclass(slots=True)
class Copy:
    """One copy under way on this side."""

    hold: int | None = None
    transfer: Transfer | None = None
    block_ids: list[int] = field(default_factory=list)
    peer: int = 0
    began_at: float = 0.0
    is_cancelled: bool = False


@dataclass(slots=True)
class PendingAdoption:
    """COMMIT is here, the request's grammar is not ready yet."""

    commit: Commit
    final: FinalState
    deadline: float


class Llumlet:
    """One per instance. Invariant: a copy's hold keeps its blocks until the transport is done with them."""

    def __init__(
        self,
        uid: int,
        port: MigrationPort,
        transports: TransportSet | None,
        settings: HandoverSettings,
        *,
        on_engine_thread: Callable[[Callable[[], object]], None],
        send: Callable[[object], None],
        abort: Callable[[list[str]], None],
        set_priority: Callable[[str, int], object],
    ) -> None:
        """`send` puts a Letter, a (owner, NoticeFrom) or MigrationNews behind the outputs so far."""
        self.uid = uid
        self._port = port
        self._transports = transports
        self._on_engine_thread = on_engine_thread
        self._send = send
        self._abort = abort
        self._set_priority = set_priority
        names = port.fingerprint()
        values = tuple((name, str(getattr(names, name))) for name in names.__struct_fields__)
        self._fingerprint = values
        self._handovers = Handovers(uid, values, port.block_size, settings)
        self._addresses: dict[int, PeerAddress] = {}
        self._leaving: dict[str, Leaving] = {}
        self._arriving: dict[str, Reservation] = {}
        self._copies: dict[tuple[str, int], Copy] = {}
        self._expected: set[tuple[str, int]] = set()
        self._adoptions: dict[str, PendingAdoption] = {}
        self._aborted: list[str] = []
        self._refused_at: dict[str, float] = {}
        self._errand: tuple[PeerAddress, int, str] | None = None
        self._errand_until = 0.0
        self._settings = settings

    # ---- commands ---------------------------------------------------------------------------------------

    def move(self, request_id: str, target: int, address: PeerAddress, reason: str) -> str:
        """Begin to move one request; its migration's id. Raises RefusedError."""
        if self._transports is None:
            raise RefusedError(NO_TRANSPORT)
        self._addresses[target] = address
        try:
            info = self._port.source.identity(request_id)
            progress = self._port.source.progress(request_id)
            assert progress is not None
            bare_id, epoch = split_engine_id(request_id)
            migration = self._handovers.new_id()
            snapshot = ev.RequestSnapshot(
                request_id=bare_id,
                epoch=epoch,
                owner=info.request.client_index,
                priority=info.request.priority,
                adapter=info.request.lora_request.lora_name if info.request.lora_request else "",
                num_tokens=len(info.request.prompt_token_ids or ()) + len(info.output_token_ids),
                num_settled_tokens=info.num_computed_tokens,
                block_hashes=(),
                output_tokens=tuple(info.output_token_ids),
                request=msgspec.msgpack.encode(encode(info)),
            )
            leaving = Leaving(migration, request_id, target, reason, info.num_preemptions, time.monotonic())
            self._leaving[migration] = leaving
            try:
                self._tell(ev.StartMigration(migration, target, snapshot))
            except CommandRefused:
                del self._leaving[migration]
                raise
        except (CommandRefused, RefusedError, UnknownTargetError, ValueError) as error:
            self._refused_at[request_id] = time.monotonic()
            raise RefusedError(str(error)) from None
        self._news(leaving, "prepare", "")
        return migration

    def move_away(self, target: int, address: PeerAddress, reason: str, for_s: float) -> None:
        """Keep moving requests there, those of lower priority and shorter ones first, for this long."""
        self._errand = (address, target, reason)
        self._errand_until = time.monotonic() + for_s
        self._run_errand()

    def cancel(self, migration: str, reason: str) -> None:
        self._tell(ev.CancelMigration(migration, reason))

    def peer_lost(self, peer: int, reason: str) -> None:
        """It is dead for sure."""
        address = self._addresses.pop(peer, None)
        if address is not None and self._transports is not None:
            self._transports.peer_gone(address.transport)
        self._tell(ev.PeerLost(peer, reason))

    def owner_lost(self, owner: int) -> None:
        self._tell(ev.OwnerLost(owner))

    def requests_aborted(self, request_ids: Sequence[str]) -> None:
        """Told in the middle of a step, too: taken up after it."""
        self._aborted += request_ids

    def priority_changed(self, request_id: str, priority: int) -> None:
        self._tell(ev.PriorityChanged(request_id, priority))

    def hear(self, letter: Letter) -> None:
        """A peer's message."""
        self._addresses[letter.peer] = letter.address
        if isinstance(letter.message, Receiving):
            self._may_send((letter.message.migration, letter.message.copy))
        else:
            self._tell(ev.PeerMessage(letter.peer, letter.message))

    @property
    def is_busy(self) -> bool:
        return bool(self._leaving or self._arriving or self._copies or self._aborted)

    @property
    def num_leaving(self) -> int:
        return len(self._leaving)

    # ---- between steps ----------------------------------------------------------------------------------

    def after_step(self, now: float) -> None:
        """Tell the machines what the step, or an idle turn, has changed."""
        aborted, self._aborted = self._aborted, []
        for request_id in aborted:
            self._tell(ev.RequestAborted(request_id))
        for leaving in list(self._leaving.values()):
            self._look_at(leaving)
        for migration in list(self._adoptions):
            self._try_adoption(migration, now)
        deadline = self._handovers.next_deadline()
        if deadline is not None and now >= deadline:
            self._tell(ev.Tick())
        self._run_errand()

    def before_step(self) -> None:
        """Reservations give way before anybody is preempted."""
        if self._arriving:
            num_missing = self._port.num_missing_blocks()
            if num_missing > 0:
                self._tell(ev.Pressure(num_missing))

    def _look_at(self, leaving: Leaving) -> None:
        source = self._port.source
        progress = source.progress(leaving.engine_id)
        if progress is None:
            self._tell(ev.RequestFinished(leaving.engine_id))
            return
        if progress.num_preemptions != leaving.num_preemptions:
            leaving.num_preemptions = progress.num_preemptions
            self._tell(ev.RequestPreempted(leaving.engine_id))
        elif leaving.froze_from is not None:
            if progress.quiet:
                self._quiesced(leaving)
        else:
            num_tokens = self._port.num_tokens(leaving.engine_id)
            self._tell(ev.Stepped(leaving.engine_id, num_tokens, progress.num_settled_tokens))

    def _quiesced(self, leaving: Leaving) -> None:
        first = leaving.froze_from
        assert first is not None
        leaving.froze_from = None
        try:
            final = self._port.source.final_state(leaving.engine_id, first)
        except RefusedError as error:
            self._tell(ev.CancelMigration(leaving.migration, str(error)))
            return
        self._tell(
            ev.Quiesced(
                leaving.engine_id,
                tuple(final.output_token_ids),
                self._port.num_tokens(leaving.engine_id),
                final.num_computed_tokens,
                msgspec.msgpack.encode(encode(final)),
            )
        )

    def _run_errand(self) -> None:
        now = time.monotonic()
        if self._errand is None or now > self._errand_until:
            self._errand = None
            return
        address, target, reason = self._errand
        for request_id in self._port.victims():
            if len(self._leaving) >= self._settings.max_concurrent:
                return
            if self._handovers.migration_of(request_id) is not None:
                continue
            if now - self._refused_at.get(request_id, -1e9) < _RETRY_REFUSED_AFTER_S:
                continue
            try:
                self.move(request_id, target, address, reason)
            except RefusedError as error:
                logger.info("request %s stays: %s", request_id, error)

    # ---- actions ----------------------------------------------------------------------------------------

    def _tell(self, event: ev.Event) -> None:
        for action in self._handovers.handle(event, time.monotonic()):
            self._do(action)

    def _do(self, action: act.Action) -> None:
        match action:
            case act.SendToPeer(peer, message):
                address = self._addresses.get(peer)
                if address is not None:
                    self._send(Letter(peer, address, message))
            case act.ToOwner(owner, notice):
                if isinstance(notice, Adopted):
                    self._send((owner, NoticeFrom(self.uid, adopted=notice)))
                else:
                    self._send((owner, NoticeFrom(self.uid, moved=notice)))
            case act.CopyBlocks():
                self._copy(action)
            case act.ReceiveBlocks():
                self._receive(action)
            case act.ReleaseCopy(migration, copy):
                done = self._copies.pop((migration, copy), None)
                if done is not None and done.hold is not None:
                    self._port.source.drop_hold(done.hold)
            case act.CancelCopy(migration, copy):
                self._cancel_copy((migration, copy))
            case act.Freeze(migration, of_engine, from_output):
                self._port.source.freeze(of_engine)
                self._leaving[migration].froze_from = from_output
                self._leaving[migration].frozen_at = time.monotonic()
            case act.Unfreeze(of_engine):
                self._port.source.unfreeze(of_engine)
            case act.Release(of_engine):
                self._port.source.release(of_engine)
            case act.Reserve(prepare):
                self._reserve(prepare)
            case act.GrowReservation(migration, num_blocks):
                self._grow(migration, num_blocks)
            case act.FreeReservation(migration):
                self._adoptions.pop(migration, None)
                self._port.target.free(self._arriving.pop(migration))
            case act.Adopt(prepare, commit):
                self._adopt(prepare, commit)
            case act.AbortEngineRequest(of_engine):
                self._abort([of_engine])
            case act.SetEnginePriority(of_engine, priority):
                self._set_priority(of_engine, priority)
            case act.MigrationEnded():
                self._ended(action)
            case _:
                assert_never(action)

    def _reserve(self, prepare: Prepare) -> None:
        if self._transports is None:
            self._tell(ev.ReserveFailed(prepare.migration, NO_TRANSPORT))
            return
        try:
            info = decode(msgspec.msgpack.decode(prepare.request, type=list[bytes]), PrepareInfo)
            num_ahead = prepare.num_blocks * self._port.block_size - info.num_computed_tokens
            reservation = self._port.target.reserve(info, prepare.engine_id, max(0, num_ahead))
        except (RefusedError, msgspec.ValidationError) as error:
            self._tell(ev.ReserveFailed(prepare.migration, str(error)))
            return
        self._arriving[prepare.migration] = reservation
        num_blocks = len(reservation.block_ids) if info.num_computed_tokens else prepare.num_blocks
        self._tell(ev.Reserved(prepare.migration, reservation.num_hit_blocks, num_blocks))

    def _grow(self, migration: str, num_blocks: int) -> None:
        reservation = self._arriving[migration]
        if not reservation.info.num_computed_tokens:
            self._tell(ev.Grown(migration, num_blocks))
        elif self._port.target.grow(reservation, num_blocks * self._port.block_size):
            self._tell(ev.Grown(migration, max(num_blocks, len(reservation.block_ids))))
        else:
            self._tell(ev.GrowFailed(migration, "the target has not enough free blocks"))

    def _adopt(self, prepare: Prepare, commit: Commit) -> None:
        final = decode(msgspec.msgpack.decode(commit.state, type=list[bytes]), FinalState)
        final = msgspec.structs.replace(final, priority=commit.priority)
        deadline = time.monotonic() + _ADOPT_WITHIN_S
        self._adoptions[prepare.migration] = PendingAdoption(commit, final, deadline)
        self._try_adoption(prepare.migration, time.monotonic())

    def _try_adoption(self, migration: str, now: float) -> None:
        pending = self._adoptions[migration]
        reservation = self._arriving[migration]
        try:
            if not self._port.target.is_ready(reservation):
                if now < pending.deadline:
                    return
                raise RefusedError("its grammar was not ready in time")
            self._port.target.adopt(reservation, pending.final)
        except RefusedError as error:
            del self._adoptions[migration]
            self._tell(ev.AdoptFailed(migration, str(error)))
            return
        del self._adoptions[migration]
        del self._arriving[migration]
        self._tell(ev.AdoptDone(migration))

    # ---- copies -----------------------------------------------------------------------------------------

    def _copy(self, action: act.CopyBlocks) -> None:
        source, key = self._port.source, (action.migration, action.copy)
        progress = source.progress(action.engine_id)
        quiet = progress is not None and progress.frozen and progress.quiet
        listing = source.last_blocks if quiet else source.copyable_blocks
        blocks = [block for _, block in listing(action.engine_id, action.first_block)][: action.num_blocks]
        copy = Copy(hold=source.hold(blocks), block_ids=blocks, peer=action.peer, began_at=time.monotonic())
        self._copies[key] = copy
        if key in self._expected:
            self._may_send(key)

    def _may_send(self, key: tuple[str, int]) -> None:
        copy = self._copies.get(key)
        if copy is None:
            if key[0] in self._leaving:
                self._expected.add(key)
            return
        self._expected.discard(key)
        if copy.is_cancelled or copy.transfer is not None:
            return
        assert self._transports is not None
        try:
            copy.transfer = self._transports.send(
                self._addresses[copy.peer].transport, _transfer_id(key), copy.block_ids, self._on_done(key)
            )
        except TransportError as error:
            self._copy_ended(key, OutcomeKind.FAILED, str(error), 0)

    def _receive(self, action: act.ReceiveBlocks) -> None:
        key = (action.migration, action.copy)
        reservation = self._arriving[action.migration]
        blocks = reservation.block_ids[action.first_block : action.first_block + action.num_blocks]
        copy = Copy(block_ids=blocks, peer=action.peer, began_at=time.monotonic())
        self._copies[key] = copy
        try:
            assert self._transports is not None
            copy.transfer = self._transports.receive(
                self._addresses[action.peer].transport, _transfer_id(key), blocks, self._on_done(key)
            )
        except TransportError as error:
            del self._copies[key]
            self._tell(ev.CopyFailed(*key, str(error)))
            return
        self._send(Letter(action.peer, self._addresses[action.peer], Receiving(*key)))

    def _cancel_copy(self, key: tuple[str, int]) -> None:
        copy = self._copies.get(key)
        if copy is None:
            return
        copy.is_cancelled = True
        if copy.transfer is None:
            self._on_engine_thread(lambda: self._copy_ended(key, OutcomeKind.CANCELLED, "", 0))
        else:
            assert self._transports is not None
            self._transports.cancel(copy.transfer)

    def _on_done(self, key: tuple[str, int]) -> Callable[[Transfer, Outcome], None]:
        def done(_: Transfer, outcome: Outcome) -> None:
            self._on_engine_thread(
                lambda: self._copy_ended(key, outcome.kind, outcome.reason, outcome.num_bytes)
            )

        return done

    def _copy_ended(self, key: tuple[str, int], kind: OutcomeKind, reason: str, num_bytes: int) -> None:
        copy = self._copies.get(key)
        if copy is None:
            return
        if self._transports is not None:
            self._transports.ended(_transfer_id(key))
        leaving = self._leaving.get(key[0])
        if leaving is not None:
            leaving.copy_s += time.monotonic() - copy.began_at
            leaving.num_bytes += num_bytes
        if copy.hold is None:
            del self._copies[key]
        match kind:
            case OutcomeKind.DONE:
                self._tell(ev.CopyDone(*key))
            case OutcomeKind.FAILED:
                self._tell(ev.CopyFailed(*key, reason))
            case OutcomeKind.CANCELLED:
                self._tell(ev.CancelConfirmed(*key))

    # ---- news -------------------------------------------------------------------------------------------

    def _ended(self, ended: act.MigrationEnded) -> None:
        leaving = self._leaving.pop(ended.migration, None)
        if leaving is None:
            return
        self._expected = {key for key in self._expected if key[0] != ended.migration}
        if ended.outcome is not act.Outcome.MOVED:
            self._refused_at[leaving.engine_id] = time.monotonic()
        state: MigrationState = "committed" if ended.outcome is act.Outcome.MOVED else "aborted"
        self._news(leaving, state, ended.reason, ended)
        self._run_errand()

    def _news(
        self, leaving: Leaving, state: MigrationState, why: str, ended: act.MigrationEnded | None = None
    ) -> None:
        downtime_ms = None
        if ended is not None and ended.outcome is act.Outcome.MOVED and leaving.frozen_at is not None:
            downtime_ms = (time.monotonic() - leaving.frozen_at) * 1e3
        self._send(
            MigrationNews(
                migration=leaving.migration,
                request_id=leaving.engine_id,
                source=self.uid,
                target=leaving.peer,
                reason=leaving.reason,
                state=state,
                why=why,
                stages=ended.stages if ended else 0,
                blocks_sent=ended.num_blocks_copied if ended else 0,
                blocks_skipped=ended.num_blocks_skipped if ended else 0,
                num_bytes=leaving.num_bytes,
                copy_ms=leaving.copy_s * 1e3,
                downtime_ms=downtime_ms,
            )
        )

    def check_integrity(self) -> list[str]:
        """What is wrong with the books; empty if all is well."""
        self._handovers.check_integrity()
        return self._port.check_integrity()


def _transfer_id(key: tuple[str, int]) -> str:
    return f"{key[0]}/{key[1]}"
