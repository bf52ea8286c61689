"""Copies of KV blocks under way on one instance, in both directions: between state machines and transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from llumnix.core.handover import actions as act
from llumnix.core.handover import events as ev
from llumnix.engine.early_receives import CopyKey, EarlyReceives, EarlyTransports, transfer_id
from llumnix.engine.migration.export import Source
from llumnix.engine.transport import OnDone, Outcome, OutcomeKind, Transfer, TransportError

_AVERAGE_WEIGHT = 0.2


class BlockTransports(Protocol):
    """What carries blocks between two instances; TransportSet in a cluster, a model of it in a simulation.

    `peer` is PeerAddress.transport of the other side. `send` may come before the peer's `receive` of the same
    transfer id: nothing is written until both are there. `on_done` is called once, on any thread, and from
    then on the blocks are no longer touched. `send` and `receive` raise TransportError.
    """

    @property
    def refusal(self) -> str | None:
        """Why nothing can be carried to or from here; None if it can."""

    def send(self, peer: bytes, transfer_id: str, block_ids: Sequence[int], on_done: OnDone) -> Transfer: ...

    def receive(
        self, peer: bytes, transfer_id: str, block_ids: Sequence[int], on_done: OnDone
    ) -> Transfer: ...

    def cancel(self, transfer: Transfer) -> None:
        """`on_done` follows in bounded time, if it was not called yet."""

    def ended(self, transfer_id: str) -> None:
        """The transfer is over and may be forgotten."""

    def peer_gone(self, peer: bytes) -> None:
        """Nobody will be at that address again."""


@dataclass(slots=True)
class Sent:
    """What the copies of one migration from here have taken so far."""

    num_bytes: int = 0
    copy_s: float = 0.0


@dataclass(slots=True)
class _Copy:
    block_ids: Sequence[int]
    began_at: float
    hold: int | None = None
    """The source's blocks are kept from reuse by this until ReleaseCopy."""
    sent: Sent = field(default_factory=Sent)
    transfer: Transfer | None = None
    """None before it has begun, and once it has ended."""


@dataclass(slots=True)
class Copies:
    """For the engine thread. Invariant: a hold keeps blocks until the transport is done with them."""

    source: Source
    transports: BlockTransports
    clock: Callable[[], float]
    on_engine_thread: Callable[[Callable[[], object]], None]
    tell: Callable[[ev.Event], None]
    blocks_per_s: float = 0.0
    """Running average of the copies that left from here."""
    early: EarlyReceives | None = field(init=False, default=None)
    """None where a copy begins on the engine thread only."""
    _open: dict[CopyKey, _Copy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.transports, EarlyTransports):
            self.early = EarlyReceives(self.transports, self.on_engine_thread, self._ended)

    def __bool__(self) -> bool:
        return bool(self._open)

    def send(self, action: act.CopyBlocks, peer: bytes, sent: Sent) -> None:
        """Start to send blocks of a request that leaves; held until `release`, counted in `sent`."""
        key = (action.migration, action.copy)
        progress = self.source.progress(action.engine_id)
        is_last = progress is not None and progress.frozen and progress.quiet
        listing = self.source.last_blocks if is_last else self.source.copyable_blocks
        blocks = [block for _, block in listing(action.engine_id, action.first_block)][: action.num_blocks]
        copy = self._open[key] = _Copy(blocks, self.clock(), self.source.hold(blocks), sent)
        self._begin(key, copy, peer, self.transports.send)

    def receive(self, action: act.ReceiveBlocks, peer: bytes, reserved: Sequence[int]) -> None:
        """Expect blocks into those of a reservation, which is `reserved`."""
        key = (action.migration, action.copy)
        blocks = reserved[action.first_block : action.first_block + action.num_blocks]
        copy = self._open[key] = _Copy(blocks, self.clock())
        begun = self.early.take(key) if self.early is not None else None
        if begun is None:
            self._begin(key, copy, peer, self.transports.receive)
        elif begun.outcome is None:
            copy.transfer = begun.transfer
        else:
            self.on_engine_thread(partial(self._ended, key, begun.outcome))

    def cancel(self, key: CopyKey) -> None:
        """Nothing to do for a copy that has ended; its end is told in any case."""
        copy = self._open.get(key)
        if copy is not None and copy.transfer is not None:
            self.transports.cancel(copy.transfer)

    def release(self, key: CopyKey) -> None:
        """The source's machine has heard of the end: its blocks may be used again."""
        copy = self._open.pop(key, None)
        if copy is not None and copy.hold is not None:
            self.source.drop_hold(copy.hold)

    def _begin(
        self,
        key: CopyKey,
        copy: _Copy,
        peer: bytes,
        start: Callable[[bytes, str, Sequence[int], OnDone], Transfer],
    ) -> None:
        def done(_: Transfer, outcome: Outcome) -> None:
            self.on_engine_thread(lambda: self._ended(key, outcome))

        try:
            copy.transfer = start(peer, transfer_id(key), copy.block_ids, done)
        except TransportError as error:
            failed = Outcome(OutcomeKind.FAILED, str(error), 0)
            self.on_engine_thread(lambda: self._ended(key, failed))

    def _ended(self, key: CopyKey, outcome: Outcome) -> None:
        copy = self._open.get(key)
        if copy is None:
            return
        # What is told below may first bring an abort to light, which asks to cancel this very copy.
        copy.transfer = None
        self.transports.ended(transfer_id(key))
        if copy.hold is None:
            del self._open[key]
        else:
            self._measure(copy, outcome)
        match outcome.kind:
            case OutcomeKind.DONE:
                self.tell(ev.CopyDone(*key))
            case OutcomeKind.FAILED:
                self.tell(ev.CopyFailed(*key, outcome.reason))
            case OutcomeKind.CANCELLED:
                self.tell(ev.CancelConfirmed(*key))

    def _measure(self, copy: _Copy, outcome: Outcome) -> None:
        took_s = self.clock() - copy.began_at
        copy.sent.num_bytes += outcome.num_bytes
        copy.sent.copy_s += took_s
        if outcome.kind is OutcomeKind.DONE:
            copied_per_s = len(copy.block_ids) / max(took_s, 1e-6)
            self.blocks_per_s += _AVERAGE_WEIGHT * (copied_per_s - self.blocks_per_s)
