"""Request lengths: the paper's generated distributions, and data sets fitted to their published quantiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

LONGEST_TOKENS = 6144
"""The paper's cap on a prompt and on an output."""
SHORTEST_TOKENS = 4
_LEVELS = (0.5, 0.8, 0.95, 0.99)


class Lengths(Protocol):
    """A distribution of lengths in tokens."""

    def draw(self, rng: np.random.RandomState, count: int) -> NDArray[np.int64]: ...


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """The paper's S, M and L: ranks 1..2m-1 with probability ~ rank^-alpha, scaled to the mean m."""

    mean: int
    alpha: float

    def draw(self, rng: np.random.RandomState, count: int) -> NDArray[np.int64]:
        ranks = np.arange(1, 2 * self.mean)
        weights = ranks.astype(float) ** -self.alpha
        drawn = rng.choice(ranks, size=count, p=weights / weights.sum())
        # To the mean of what was drawn, not of the distribution, as the paper's artifact does.
        scaled = np.ceil(drawn * (self.mean / drawn.mean()))
        return np.minimum(scaled, LONGEST_TOKENS).astype(np.int64)


@dataclass(frozen=True, slots=True)
class FittedQuantiles:
    """Lengths with a published mean, P50, P80, P95 and P99: the quantile of a uniform number.

    Between two quantiles it is their weighted power mean; the power, one for all, is chosen such that the
    mean is met. The last percent reaches as far above P99 as P99 above P95, at most to LONGEST_TOKENS.
    """

    mean: float
    quantiles: tuple[float, float, float, float]

    def draw(self, rng: np.random.RandomState, count: int) -> NDArray[np.int64]:
        lengths = self._at(rng.random_sample(count), self._power())
        return np.maximum(np.rint(lengths), 1).astype(np.int64)

    def _at(self, levels: NDArray[np.float64], power: float) -> NDArray[np.float64]:
        p95, p99 = self.quantiles[2:]
        edges = np.array((0.0, *_LEVELS, 1.0))
        values = np.array((SHORTEST_TOKENS, *self.quantiles, min(p99 * p99 / p95, LONGEST_TOKENS)))
        result: NDArray[np.float64] = np.interp(levels, edges, values**power) ** (1 / power)
        return result

    def _power(self) -> float:
        """By bisection: the mean rises with the power."""
        levels = (np.arange(100_000) + 0.5) / 100_000
        low, high = -5.0, 8.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self._at(levels, middle).mean() < self.mean else (low, middle)
        return high


_GENERATED = {"S": PowerLaw(128, 2.0), "M": PowerLaw(256, 1.5), "L": PowerLaw(512, 1.15)}

DATASETS: dict[str, tuple[Lengths, Lengths]] = {
    **{f"{i}-{o}": (_GENERATED[i], _GENERATED[o]) for i in _GENERATED for o in _GENERATED},
    "ShareGPT": (
        FittedQuantiles(306, (74, 348, 1484, 3388)),
        FittedQuantiles(500, (487, 781, 988, 1234)),
    ),
    "BurstGPT": (
        FittedQuantiles(830, (582, 1427, 2345, 3549)),
        FittedQuantiles(271, (243, 434, 669, 964)),
    ),
}
"""By name: lengths of prompts and of outputs. "S-L" has short prompts and long outputs."""
