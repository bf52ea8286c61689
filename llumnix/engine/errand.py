"""An order of the global scheduler to move requests, as its source's llumlet carries it out."""

from __future__ import annotations

from collections.abc import Callable

from llumnix.core.load import InstanceReport
from llumnix.core.victims import Candidate, Queued, Sent, next_victim
from llumnix.engine.migration.port import MigrationPort
from llumnix.wire import MoveAway


class Errand:
    """One order, and what has begun to leave under it; for the engine thread, between two steps."""

    def __init__(
        self, order: MoveAway, port: MigrationPort, load: Callable[[], InstanceReport], now: float
    ) -> None:
        """`load` measures what the instance would report at this moment."""
        self.order = order
        self._port = port
        self._load = load
        self._until = now + order.for_s
        self._sent = Sent()

    def is_over(self, now: float) -> bool:
        return now > self._until

    def next_victim(self, may_move: Callable[[str], bool]) -> Candidate | None:
        """The request to move next of those that `may_move`; None where the goal is reached."""
        goal = self.order.goal
        candidates = self._port.candidates(may_move, waiting=goal.queued is not Queued.STAY)
        return next_victim(candidates, self._load(), goal, self._sent)

    def sent(self, victim: Candidate) -> None:
        """Count a request whose migration has begun."""
        self._sent = self._sent.plus(victim)
