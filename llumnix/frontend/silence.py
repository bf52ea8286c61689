"""Which instances have stopped reporting, as an API server sees it for itself, llumnixd or not."""

from __future__ import annotations

from collections.abc import Iterable

LATE_S = 1.0


class SilenceWatch:
    """Not thread-safe; `now` is passed in. Reports come at least every 0.5 s from a loop that is well.

    When this process itself stood still, reports may lie unread: such time does not count.
    """

    def __init__(self, limit_s: float, now: float) -> None:
        self._limit_s = limit_s
        self._looked_at = now
        self._heard_at: dict[int, float] = {}

    def heard(self, uid: int, now: float) -> None:
        self._heard_at[uid] = now

    def silent(self, uids: Iterable[int], now: float) -> dict[int, float]:
        """Of all instances those beyond the limit, with the seconds; call it some times a second."""
        stood_still_s = now - self._looked_at
        self._looked_at = now
        if stood_still_s > LATE_S:
            self._heard_at = {uid: min(at + stood_still_s, now) for uid, at in self._heard_at.items()}
        # An instance is first expected to be heard from when it is first asked about.
        self._heard_at = {uid: self._heard_at.get(uid, now) for uid in uids}
        return {uid: now - at for uid, at in self._heard_at.items() if now - at > self._limit_s}
