"""Block transfers on the virtual clock: they take the profile's time and move nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llumnix.engine.simulated.clock import VirtualClock
from llumnix.engine.transport import OnDone, Outcome, OutcomeKind, Transfer
from llumnix.profiles import HardwareProfile


@dataclass(eq=False)
class VirtualTransfer(Transfer):
    """One side of a transfer. Invariant: `on_done` is called once."""

    transfer_id: str
    block_ids: Sequence[int]
    link: Link = field(repr=False)
    on_done: OnDone = field(repr=False)
    peer: VirtualTransfer | None = field(default=None, repr=False)
    """The other side, once it is there too."""
    ended: Outcome | None = None

    @property
    def outcome(self) -> Outcome | None:
        return self.ended

    def end(self, kind: OutcomeKind, reason: str = "", num_bytes: int = 0) -> None:
        if self.ended is None:
            self.ended = Outcome(kind, reason, num_bytes)
            self.on_done(self, self.ended)


class Network:
    """Connects the instances of one simulation, each by a link that carries one copy at a time."""

    def __init__(self, clock: VirtualClock, profile: HardwareProfile) -> None:
        self._clock = clock
        self._profile = profile
        self._lone: dict[str, VirtualTransfer] = {}
        """By id: transfers whose other side is not there yet."""

    def join(self, transfer: VirtualTransfer) -> None:
        """Have one side of a transfer; the copy begins once both are there and their links are free."""
        peer = self._lone.pop(transfer.transfer_id, None)
        if peer is None:
            self._lone[transfer.transfer_id] = transfer
            return
        transfer.peer, peer.peer = peer, transfer
        profile, num_blocks = self._profile, len(transfer.block_ids)
        begins = max(self._clock.now, transfer.link.busy_until, peer.link.busy_until)
        ends = begins + profile.copy_s(num_blocks)
        transfer.link.busy_until = peer.link.busy_until = ends
        num_bytes = num_blocks * profile.block_size * profile.kv_bytes_per_token

        def end() -> None:
            transfer.end(OutcomeKind.DONE, num_bytes=num_bytes)
            peer.end(OutcomeKind.DONE, num_bytes=num_bytes)

        self._clock.at(ends, end)

    def cancel(self, transfer: VirtualTransfer) -> None:
        """End it at once; the other side's fails, if it is there."""
        peer = transfer.peer
        if peer is None:
            self._lone.pop(transfer.transfer_id, None)

        def end() -> None:
            transfer.end(OutcomeKind.CANCELLED, "cancelled")
            if peer is not None:
                peer.end(OutcomeKind.FAILED, "cancelled by the other side")

        self._clock.at(self._clock.now, end)

    def step_factor(self, link: Link) -> float:
        """By how much a copy that runs now slows the steps of the link's instance."""
        return self._profile.copy_slowdown if self._clock.now < link.busy_until else 1.0


class Link:
    """One instance's end of the network: its BlockTransports (llumnix.engine.copies)."""

    refusal = None
    address = b"virtual"

    def __init__(self, network: Network) -> None:
        self.busy_until = 0.0
        self._network = network

    def send(self, peer: bytes, transfer_id: str, block_ids: Sequence[int], on_done: OnDone) -> Transfer:
        transfer = VirtualTransfer(transfer_id, block_ids, self, on_done)
        self._network.join(transfer)
        return transfer

    receive = send

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, VirtualTransfer)
        self._network.cancel(transfer)

    def ended(self, transfer_id: str) -> None:
        """Nothing is kept of it."""

    def peer_gone(self, peer: bytes) -> None:
        """Nothing is kept of it."""

    def step_factor(self) -> float:
        """Time of a step that begins now, by its time without copies."""
        return self._network.step_factor(self)
