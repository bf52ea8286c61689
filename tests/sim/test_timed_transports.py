"""The transfers of live simulated instances: each ends once, by its time or by a cancellation."""

from __future__ import annotations

import queue
from dataclasses import replace

from llumnix.engine.simulated.timed_transports import TimedTransports
from llumnix.engine.transport import Outcome, OutcomeKind, Transfer
from llumnix.profiles import PROFILES


def test_a_transfer_ends_once_by_its_time_or_by_cancellation() -> None:
    ended: queue.Queue[tuple[str, Outcome]] = queue.Queue()

    def on_done(transfer: Transfer, outcome: Outcome) -> None:
        ended.put((transfer.transfer_id, outcome))

    quick = TimedTransports(PROFILES["a10-llama-7b"])
    sent = quick.send(b"", "quick", [1, 2], on_done)
    transfer_id, outcome = ended.get(timeout=60)
    assert (transfer_id, outcome.kind, outcome.num_bytes) == ("quick", OutcomeKind.DONE, 2 * 16 * (512 << 10))
    assert sent.outcome == outcome
    quick.cancel(sent)  # too late

    slow = TimedTransports(replace(PROFILES["a10-llama-7b"], copy_fixed_ms=3.6e6))
    received = slow.receive(b"", "slow", [1], on_done)
    slow.cancel(received)
    transfer_id, outcome = ended.get(timeout=60)
    assert (transfer_id, outcome.kind) == ("slow", OutcomeKind.CANCELLED)
    assert ended.empty()
