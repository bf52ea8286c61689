"""A transfer on one side: its blocks, the lock that guards them, and its one end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from llumnix.engine.transport.base import OnDone, Outcome, OutcomeKind, Transfer
from llumnix.engine.transport.chunks import Chunk

logger = logging.getLogger(__name__)


class BlockTransfer(Transfer):
    """Ends by `end`, on the loop's thread. Copies run only under `guard` and only while `outcome` is None."""

    def __init__(self, transfer_id: str, block_ids: Sequence[int], on_done: OnDone, fence: Any) -> None:
        self.transfer_id = transfer_id
        self.block_ids: tuple[int, ...] = tuple(block_ids)
        self.fence = fence
        self.guard = threading.Lock()
        """Held by a copy of one chunk; taken to end, so that no copy is running once `on_done` is called."""
        self.num_bytes = 0
        self.link: Any = None
        """The connection that carries it, once there is one; only for the loop's thread."""
        self.number = 0
        """What that connection calls it."""
        self._on_done = on_done
        self._outcome: Outcome | None = None

    @property
    def outcome(self) -> Outcome | None:
        """See Transfer."""
        return self._outcome

    def blocks_of(self, chunk: Chunk) -> tuple[int, ...]:
        """The block ids that a chunk is about."""
        return self.block_ids[chunk.first : chunk.first + chunk.num_blocks]

    def end(self, kind: OutcomeKind, reason: str = "") -> None:
        """The first call decides; waits for the copy of one chunk at most."""
        if self._outcome is not None:
            return
        with self.guard:
            self._outcome = Outcome(kind, reason, self.num_bytes)
        try:
            self._on_done(self, self._outcome)
        except Exception:
            logger.exception("the completion callback of transfer %s failed", self.transfer_id)
