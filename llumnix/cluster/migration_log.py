"""The migrations of a cluster, as their sources told of them."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from dataclasses import dataclass

import msgspec

from llumnix.wire import MigrationNews

KEPT = 1_000
"""Ended migrations that stay in view."""


@dataclass(frozen=True, slots=True)
class MigrationEntry:
    """One migration: the latest news of it, and when it began and ended (Unix time)."""

    news: MigrationNews
    started_at: float
    ended_at: float | None


class MigrationLog:
    """Bounded; those under way are never dropped."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, MigrationEntry] = OrderedDict()
        self.committed_in: Counter[int] = Counter()
        self.committed_out: Counter[int] = Counter()
        self.num_aborted = 0
        self._moving: set[str] = set()

    def take(self, news: MigrationNews) -> None:
        known = self._entries.get(news.migration)
        now = time.time()
        started_at = known.started_at if known else now
        is_over = news.state != "prepare"
        self._entries[news.migration] = MigrationEntry(news, started_at, now if is_over else None)
        if is_over:
            self._moving.discard(news.request_id)
        else:
            self._moving.add(news.request_id)
        if news.state == "committed":
            self.committed_in[news.target] += 1
            self.committed_out[news.source] += 1
        elif is_over:
            self.num_aborted += 1
        self._trim()

    def source_lost(self, uid: int, reason: str) -> None:
        """Nobody will tell how these ended: the API server resumes their requests."""
        for entry in list(self._entries.values()):
            if entry.ended_at is None and entry.news.source == uid:
                lost = msgspec.structs.replace(entry.news, state="aborted", why=f"the source died: {reason}")
                self.take(lost)

    def entries(self) -> list[MigrationEntry]:
        return list(self._entries.values())

    def moving(self) -> set[str]:
        """Engine-side ids of the requests that are being moved."""
        return self._moving

    def num_active(self) -> int:
        return sum(entry.ended_at is None for entry in self._entries.values())

    def _trim(self) -> None:
        excess = len(self._entries) - KEPT
        for migration in [m for m, e in self._entries.items() if e.ended_at is not None][: max(0, excess)]:
            del self._entries[migration]
