"""How many requests a token may send: a bucket of permissions that fills steadily."""

import time
from collections.abc import Callable

PER_S = 200.0
BURST = 2_000
"""A terminal interface at 10,000 requests asks about 20 times a second; a script in a loop asks for more."""


class RateLimit:
    """For one event loop; callers are few (one for each configured token), so none is ever forgotten."""

    def __init__(
        self, per_s: float = PER_S, burst: int = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_s = per_s
        self._burst = burst
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}
        """By caller: permissions, and when there were so many."""

    def wait_s(self, caller: str) -> float:
        """Take one permission; 0 if there was one, else how long until there is."""
        now = self._clock()
        left, since = self._left.get(caller, (float(self._burst), now))
        left = min(self._burst, left + (now - since) * self.per_s)
        allowed = left >= 1.0
        self._left[caller] = (left - 1.0 if allowed else left, now)
        return 0.0 if allowed else (1.0 - left) / self.per_s
