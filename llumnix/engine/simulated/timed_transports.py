"""Block transfers of a live simulated instance: they take the profile's time and move nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from llumnix.engine.transport import OnDone, Outcome, OutcomeKind, Transfer
from llumnix.profiles import HardwareProfile


class TimedTransfer(Transfer):
    """One side of a transfer; it ends by its timer or by `cancel`, whichever comes first."""

    def __init__(self, transfer_id: str, block_ids: Sequence[int], on_done: OnDone) -> None:
        self.transfer_id = transfer_id
        self.block_ids = block_ids
        self._on_done = on_done
        self._outcome: Outcome | None = None
        self._ending = threading.Lock()

    @property
    def outcome(self) -> Outcome | None:
        """See Transfer."""
        return self._outcome

    def end_in(self, seconds: float, outcome: Outcome) -> None:
        """Have it end so then, on a thread of its own."""
        timer = threading.Timer(seconds, self._end, (outcome,))
        timer.daemon = True
        timer.start()

    def _end(self, outcome: Outcome) -> None:
        with self._ending:
            if self._outcome is not None:
                return
            self._outcome = outcome
        self._on_done(self, outcome)


class TimedTransports:
    """BlockTransports (llumnix.engine.copies) without blocks: each side waits as long as a copy takes."""

    refusal = None
    address = b"simulated"

    def __init__(self, profile: HardwareProfile) -> None:
        self._profile = profile

    def send(self, peer: bytes, transfer_id: str, block_ids: Sequence[int], on_done: OnDone) -> Transfer:
        transfer = TimedTransfer(transfer_id, block_ids, on_done)
        profile, num_blocks = self._profile, len(block_ids)
        num_bytes = num_blocks * profile.block_size * profile.kv_bytes_per_token
        transfer.end_in(profile.copy_s(num_blocks), Outcome(OutcomeKind.DONE, "", num_bytes))
        return transfer

    receive = send

    def cancel(self, transfer: Transfer) -> None:
        """See BlockTransports."""
        assert isinstance(transfer, TimedTransfer)
        transfer.end_in(0.0, Outcome(OutcomeKind.CANCELLED, "cancelled", 0))

    def ended(self, transfer_id: str) -> None:
        """Nothing is kept of it."""

    def peer_gone(self, peer: bytes) -> None:
        """Nothing is kept of it."""

    def close(self) -> None:
        """Timers are daemons: nothing to end."""
