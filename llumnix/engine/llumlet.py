"""The llumlet: one instance's half of all migrations, between state machines, engine and transport.

Everything here runs on the engine thread between two steps. The transport's threads and the inbox hand
their news in through `on_engine_thread`.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import assert_never

import msgspec

from llumnix.core.events import CommandRefused
from llumnix.core.handover import actions as act
from llumnix.core.handover import events as ev
from llumnix.core.handover.host import Handovers
from llumnix.core.handover.messages import Moved, Notice, Stage
from llumnix.core.handover.settings import HandoverSettings
from llumnix.core.load import InstanceReport
from llumnix.engine.arrivals import Arrivals
from llumnix.engine.copies import BlockTransports, Copies
from llumnix.engine.departures import Departures, Leaving
from llumnix.engine.errand import Errand
from llumnix.engine.migration.port import MigrationPort
from llumnix.engine.peers import Letter
from llumnix.engine.scheduler_view import MovesUnderWay
from llumnix.errors import RefusedError, UnknownTargetError
from llumnix.log import get_logger
from llumnix.wire import Move, MoveAway, NoticeFrom, PeerAddress

logger = get_logger(__name__)

_RETRY_REFUSED_AFTER_S = 1.0
_REFUSALS_TOLD_S = 3.0
_REFUSALS_TOLD = 3
_REASON_CHARS = 200


class Llumlet:
    """One per instance; in a cluster and in a simulation alike."""

    def __init__(
        self,
        uid: int,
        port: MigrationPort,
        transports: BlockTransports,
        settings: HandoverSettings,
        *,
        on_engine_thread: Callable[[Callable[[], object]], None],
        send: Callable[[object], None],
        abort: Callable[[list[str]], None],
        set_priority: Callable[[str, int], object],
        load: Callable[[], InstanceReport],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`load` measures the instance's load as of now; `send` puts a Letter, a (owner, NoticeFrom) or
        MigrationNews behind the outputs so far; `clock` is in seconds and must be `after_step`'s."""
        self.uid = uid
        self._port = port
        self._transports = transports
        self._send = send
        self._abort = abort
        self._set_priority = set_priority
        self._load = load
        self._clock = clock
        self._settings = settings
        names = port.fingerprint()
        values = tuple((name, str(getattr(names, name))) for name in names.__struct_fields__)
        self._handovers = Handovers(uid, values, port.block_size, settings)
        self._departures = Departures(uid, port, clock, self._tell, send)
        self._copies = Copies(port.source, transports, clock, on_engine_thread, self._tell)
        self._arrivals = Arrivals(
            port.target, port.block_size, clock, on_engine_thread, self._tell, self._copies.early
        )
        self._addresses: dict[int, PeerAddress] = {}
        self._aborted: list[str] = []
        self._refused: dict[str, tuple[float, str]] = {}
        """By request, when and why it was last not to leave; kept for as long as it is told."""
        self._errand: Errand | None = None
        self._in_turn: deque[Move] = deque()
        """What an operator wants moved as well, once earlier ones have left."""
        if transports.refusal is not None:
            self.close(transports.refusal)

    # ---- commands ---------------------------------------------------------------------------------------

    def move(self, request_id: str, target: int, address: PeerAddress, reason: str) -> str:
        """Begin to move one request; its migration's id. Raises RefusedError."""
        if self._transports.refusal is not None:
            self._stays(request_id, self._transports.refusal)
            raise RefusedError(self._transports.refusal)
        self._addresses[target] = address
        migration = self._handovers.new_id()
        try:
            snapshot, num_preemptions = self._departures.snapshot(request_id)
            self._departures.begin(Leaving(migration, request_id, target, reason, num_preemptions))
            try:
                self._tell(ev.StartMigration(migration, target, snapshot))
            except CommandRefused:
                self._departures.forget(migration)
                raise
        except (CommandRefused, RefusedError, UnknownTargetError, ValueError) as error:
            self._stays(request_id, str(error))
            raise RefusedError(str(error)) from None
        self._departures.announce(migration)
        return migration

    def move_in_turn(self, first: Move) -> None:
        """Have those that follow a request leave too, each as soon as its migration can begin."""
        self._in_turn += [msgspec.structs.replace(first, request_id=r, then=()) for r in first.then]
        self._move_next()

    def _move_next(self) -> None:
        while self._in_turn and not self._handovers.is_full:
            order = self._in_turn.popleft()
            if not self._port.num_tokens(order.request_id):
                continue  # it has ended, or has left already
            try:
                self.move(order.request_id, order.target, order.address, order.reason)
            except RefusedError as error:
                migration = self._handovers.new_id()
                leaving = Leaving(migration, order.request_id, order.target, order.reason, 0)
                self._departures.refused(leaving, str(error))

    def move_away(self, order: MoveAway) -> None:
        """Take an order of the global scheduler; it replaces the former one."""
        now = self._clock()
        self._errand = Errand(order, self._port, self._load, now)
        self._forget_old_refusals(now)
        self._run_errand()

    def cancel(self, migration: str, reason: str) -> None:
        self._tell(ev.CancelMigration(migration, reason))

    def close(self, reason: str) -> None:
        """Take in no request any more; those on their way stay where they are."""
        self._tell(ev.Closed(reason))

    def peer_lost(self, peer: int, reason: str) -> None:
        """It is dead for sure."""
        address = self._addresses.pop(peer, None)
        if address is not None:
            self._transports.peer_gone(address.transport)
        self._tell(ev.PeerLost(peer, reason))

    def owner_lost(self, owner: int) -> None:
        self._tell(ev.OwnerLost(owner))

    def requests_aborted(self, request_ids: Sequence[str]) -> None:
        """Told in the middle of a step, too: taken up after it."""
        self._aborted += request_ids

    def priority_changed(self, request_id: str, priority: int) -> None:
        self._tell(ev.PriorityChanged(request_id, priority))

    def foresee(self, letter: Letter) -> None:
        """Begin to receive what a letter announces that `hear` is yet to be given; any thread."""
        if isinstance(letter.message, Stage) and self._copies.early is not None:
            self._copies.early.begin(letter.message, letter.address.transport)

    def hear(self, letter: Letter) -> None:
        """A peer's message."""
        self._addresses[letter.peer] = letter.address
        self._tell(ev.PeerMessage(letter.peer, letter.message))

    # ---- what others see --------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        return bool(self._departures or self._arrivals or self._copies or self._aborted)

    @property
    def num_leaving(self) -> int:
        return len(self._departures)

    def moves_under_way(self) -> MovesUnderWay:
        """What of the load is about to leave or has yet to come, for the instance's report."""
        held = [self._port.held_blocks(engine_id) for engine_id in self._departures.engine_ids()]
        running = [num_blocks for num_blocks in held if num_blocks is not None]
        num_arriving = len(self._arrivals)
        speed = self._copies.blocks_per_s
        return MovesUnderWay(len(running), sum(running), num_arriving, speed, self._refusals())

    def _refusals(self) -> dict[str, int]:
        """The commonest reasons why requests that are still here have lately not left."""
        if not self._refused:
            return {}
        self._forget_old_refusals(self._clock())
        here = (
            reason for request_id, (_, reason) in self._refused.items() if self._port.num_tokens(request_id)
        )
        return dict(Counter(reason[:_REASON_CHARS] for reason in here).most_common(_REFUSALS_TOLD))

    def _forget_old_refusals(self, now: float) -> None:
        self._refused = {
            r: (at, why) for r, (at, why) in self._refused.items() if now - at < _REFUSALS_TOLD_S
        }

    def _stays(self, request_id: str, reason: str) -> None:
        self._refused[request_id] = (self._clock(), reason)

    def check_integrity(self) -> list[str]:
        """What is wrong with the books; empty if all is well."""
        self._handovers.check_integrity()
        return self._port.check_integrity()

    # ---- between steps ----------------------------------------------------------------------------------

    def after_step(self, now: float) -> None:
        """Tell the machines what the step, or an idle turn, has changed."""
        self._catch_up()
        deadline = self._handovers.next_deadline()
        if deadline is not None and now >= deadline:
            self._tell(ev.Tick())
        self._run_errand()

    def _catch_up(self) -> None:
        """The machines must know what became of their requests before they hear anything else."""
        aborted, self._aborted = self._aborted, []
        for request_id in aborted:
            self._tell(ev.RequestAborted(request_id))
        self._departures.look()

    def before_step(self) -> None:
        """What is frozen stays so, and reservations give way before anybody is preempted."""
        self._port.source.keep_back_preempted()
        if self._arrivals:
            num_missing = self._port.num_missing_blocks()
            if num_missing > 0:
                self._tell(ev.Pressure(num_missing))

    def _run_errand(self) -> None:
        self._move_next()
        now = self._clock()
        if self._errand is not None and self._errand.is_over(now):
            self._errand = None
        errand = self._errand
        while errand is not None and len(self._departures) < self._settings.max_concurrent:
            victim = errand.next_victim(lambda request_id: self._may_move(request_id, now))
            if victim is None:
                return
            order = errand.order
            try:
                self.move(victim.request_id, order.target, order.address, order.reason)
                errand.sent(victim)
            except RefusedError as error:  # it is no candidate for a while
                logger.info("request %s stays: %s", victim.request_id, error)

    def _may_move(self, request_id: str, now: float) -> bool:
        refused_at, _ = self._refused.get(request_id, (-math.inf, ""))
        return self._handovers.migration_of(request_id) is None and now - refused_at >= _RETRY_REFUSED_AFTER_S

    # ---- actions ----------------------------------------------------------------------------------------

    def _tell(self, event: ev.Event) -> None:
        if isinstance(event, ev.PeerMessage | ev.CopyEnd):
            self._catch_up()
        for action in self._handovers.handle(event, self._clock()):
            self._do(action)

    def _do(self, action: act.Action) -> None:
        match action:
            case act.SendToPeer(peer, message):
                if (address := self._addresses.get(peer)) is not None:
                    self._send(Letter(peer, address, message))
            case act.ToOwner(owner, notice):
                self._send((owner, _from(self.uid, notice)))
            case act.CopyBlocks(migration, peer=peer):
                self._departures.copying(action)
                self._copies.send(action, self._addresses[peer].transport, self._departures.sent(migration))
            case act.ReceiveBlocks(migration, peer=peer):
                reserved = self._arrivals.block_ids(migration)
                self._copies.receive(action, self._addresses[peer].transport, reserved)
            case act.ReleaseCopy(migration, copy):
                self._copies.release((migration, copy))
            case act.CancelCopy(migration, copy):
                self._copies.cancel((migration, copy))
            case act.Freeze():
                self._departures.freeze(action)
            case act.Unfreeze(of_engine):
                self._port.source.unfreeze(of_engine)
            case act.Release(of_engine):
                self._port.source.release(of_engine)
            case act.Reserve():
                self._arrivals.reserve(action)
            case act.GrowReservation():
                self._arrivals.grow(action)
            case act.FreeReservation(migration):
                self._arrivals.free(migration)
            case act.Adopt():
                self._arrivals.adopt(action)
            case act.AbortEngineRequest(of_engine):
                self._abort([of_engine])
            case act.SetEnginePriority(of_engine, priority):
                self._set_priority(of_engine, priority)
            case act.MigrationEnded():
                self._ended(action)
            case _:
                assert_never(action)

    def _ended(self, ended: act.MigrationEnded) -> None:
        request_id = self._departures.ended(ended)
        if request_id is None:
            return
        if ended.outcome is not act.Outcome.MOVED:
            self._stays(request_id, ended.reason)
        self._run_errand()


def _from(uid: int, notice: Notice) -> NoticeFrom:
    if isinstance(notice, Moved):
        return NoticeFrom(uid, moved=notice)
    return NoticeFrom(uid, adopted=notice)
