"""Percentiles of what clients saw lately, over all API servers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llumnix.admin.schema import Latency, Percentiles
from llumnix.wire import LatencySamples

WINDOW_S = 60.0
MAX_SAMPLES = 50_000
"""The newest ones, of either kind: bounds memory and the time that a percentile takes."""


@dataclass(slots=True)
class _Window:
    samples: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    """(when it was told, seconds), oldest first."""

    def take(self, values: Iterable[float], now: float) -> None:
        self.samples.extend((now, value) for value in values)

    def percentiles_ms(self, now: float) -> Percentiles | None:
        while self.samples and self.samples[0][0] < now - WINDOW_S:
            self.samples.popleft()
        ordered = sorted(value * 1e3 for _, value in self.samples)
        if not ordered:
            return None
        return Percentiles(**{f"p{share}": _nearest_rank(ordered, share) for share in (50, 90, 99)})


class LatencyWindow:
    """Exact, as the samples themselves are kept; `now` is one monotonic clock."""

    def __init__(self) -> None:
        self._ttft = _Window()
        self._tpot = _Window()

    def take(self, told: LatencySamples, now: float) -> None:
        self._ttft.take(told.ttft_s, now)
        self._tpot.take(told.tpot_s, now)

    def latency(self, now: float) -> Latency:
        """Of the last WINDOW_S; None where nothing was seen."""
        return Latency(
            window_s=WINDOW_S,
            ttft_ms=self._ttft.percentiles_ms(now),
            tpot_ms=self._tpot.percentiles_ms(now),
        )


def _nearest_rank(ordered: Sequence[float], share: int) -> float:
    """The smallest value that `share` percent of the values do not exceed."""
    return ordered[math.ceil(len(ordered) * share / 100) - 1]
