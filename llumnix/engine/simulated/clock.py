"""The virtual clock of a simulation and what is due on it."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class VirtualClock:
    """Makes calls at their times; those of one time in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._num_asked = 0

    def __call__(self) -> float:
        """Seconds since the beginning; stands in for time.monotonic."""
        return self.now

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Have `call` made then; not before now."""
        self._num_asked += 1
        heapq.heappush(self._due, (max(when, self.now), self._num_asked, call))

    def run_until(self, is_over: Callable[[], bool]) -> None:
        """Go from one due call to the next until it is over or nothing is due."""
        while self._due and not is_over():
            self.now, _, call = heapq.heappop(self._due)
            call()
