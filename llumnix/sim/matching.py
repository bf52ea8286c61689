"""Matched pressure: the rate at which a baseline shows the P99 prefill the paper published for it.

A current engine bears more load than the paper's, so its published rates are no pressure at all here. Rates
that were found are kept beside this module (matched_rates.json) and used again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llumnix.errors import ConfigError
from llumnix.sim.paper import PRESSURE_POLICY, Point, compare

KEPT = Path(__file__).with_name("matched_rates.json")
_TOLERANCE = 0.15
"""Of the P99 prefill, relative: two seeds differ by more."""
_NARROWEST = 1.002
"""Ratio of two rates below which the noise of a P99 is all that is left."""
_FIRST_STEP = 1.04
"""Ratio of the first two rates; the next steps grow until the target lies between two."""
_MAX_RUNS = 14


@dataclass(frozen=True, slots=True)
class MatchedRate:
    figure: int
    panel: str
    x: float
    requests: int
    instances: int
    profile: str
    policy: str
    """Whose P99 prefill is matched."""
    seeds: int
    """Runs of which the median was taken."""
    target_s: float
    """Published P99 prefill."""
    rate: float
    prefill_p99_s: float
    """Ours at this rate."""


def read_matches(path: Path = KEPT) -> list[MatchedRate]:
    """Rates found so far; none if there is no file. Raises ConfigError."""
    try:
        return [MatchedRate(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): expected a file of matched rates.") from None


def keep_match(match: MatchedRate, path: Path = KEPT) -> None:
    """Add a rate to the file, in place of one for the same point."""
    others = [kept for kept in read_matches(path) if _place(kept) != _place(match)]
    rows = [asdict(kept) for kept in sorted([*others, match], key=_place)]
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def kept_match(point: Point, matches: list[MatchedRate]) -> MatchedRate | None:
    """The rate found for this very point, number of requests and cluster."""
    wanted = _place(_match(point, seeds=0, rate=0.0, measured_s=0.0))
    return next((match for match in matches if _place(match) == wanted), None)


def target_s(point: Point) -> float:
    """P99 prefill that the paper shows for the baseline at this point. Raises ConfigError."""
    policy = PRESSURE_POLICY.get(point.figure)
    if policy is None:
        raise ConfigError(
            f"figure {point.figure} has no pressure to match: it compares at equal P99 prefill."
        )
    target = point.published(point.panels[-1], policy).get("prefill_p99_s")
    if target is None:
        raise ConfigError(
            f"panel {point.panels[-1]} has no published point at {point.x:g}: no rate to match."
        )
    return target


def at_matched_rate(point: Point, seeds: int, jobs: int, *, keep: bool, tell: Callable[[str], None]) -> Point:
    """The point at its matched rate: the one in the file, or one found now (and put there if `keep`)."""
    matched = kept_match(point, read_matches())
    if matched is None:

        def measure(rate: float) -> float:
            (row,) = compare([replace(point.at(rate), panels=point.panels[-1:])], [policy], seeds, jobs)
            tell(f"{row.panel} {rate:.4g} {policy}: P99 prefill {row.metrics.prefill_p99_s:.3g} s")
            return row.metrics.prefill_p99_s

        policy = PRESSURE_POLICY.get(point.figure, "")
        matched = find_match(point, measure, seeds)
        if keep:
            keep_match(matched)
    tell(
        f"{matched.panel} {matched.x:g}: matched rate {matched.rate:.4f}, where {matched.policy} has a P99 "
        f"prefill of {matched.prefill_p99_s:.3g} s (published: {matched.target_s:.3g} s)"
    )
    return point.at(matched.rate)


def find_match(point: Point, measure: Callable[[float], float], seeds: int) -> MatchedRate:
    """Bracketing, then regula falsi on the logarithm of `measure(rate)`, the P99 prefill in seconds."""
    target = target_s(point)
    tried: dict[float, float] = {}
    rate = point.rate * 1.2
    while len(tried) < _MAX_RUNS:
        tried[rate] = measure(rate)
        if abs(tried[rate] / target - 1) <= _TOLERANCE:
            break
        below = max((r for r, value in tried.items() if value < target), default=None)
        above = min((r for r, value in tried.items() if value >= target), default=None)
        if below is None or above is None:
            step = _FIRST_STEP ** len(tried)
            rate *= step if above is None else 1 / step
        elif above / below < _NARROWEST:
            break
        else:
            rate = _between(below, above, tried, target)
    best = min(tried, key=lambda r: abs(math.log(tried[r] / target)))
    return _match(point, seeds, best, tried[best])


def _between(below: float, above: float, tried: dict[float, float], target: float) -> float:
    """Where a straight line through the logarithms meets the target, but never close to an end."""
    low, high = math.log(tried[below]), math.log(tried[above])
    share = (math.log(target) - low) / (high - low) if high > low else 0.5
    return below + (above - below) * min(max(share, 0.2), 0.8)


def _match(point: Point, seeds: int, rate: float, measured_s: float) -> MatchedRate:
    return MatchedRate(
        figure=point.figure,
        panel=point.panels[-1],
        x=point.x,
        requests=point.workload.requests or 0,
        instances=point.setup.instances,
        profile=point.setup.profile,
        policy=PRESSURE_POLICY[point.figure],
        seeds=seeds,
        target_s=target_s(point),
        rate=rate,
        prefill_p99_s=measured_s,
    )


def _place(match: MatchedRate) -> tuple[int, str, float, int, int, str]:
    return match.figure, match.panel, match.x, match.requests, match.instances, match.profile
