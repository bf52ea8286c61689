"""The migrations of a cluster, as their sources told of them."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from dataclasses import dataclass

import msgspec

from llumnix.cluster.request_ids import internal_id
from llumnix.wire import MigrationNews

KEPT = 1_000
"""Ended migrations that stay in view."""
KEPT_MOVES = 50_000
"""Requests whose moves are remembered, the latest ones: more than run at a time."""


@dataclass(frozen=True, slots=True)
class MigrationEntry:
    """One migration: the latest news of it, and when it began and ended (Unix time)."""

    news: MigrationNews
    started_at: float
    ended_at: float | None


@dataclass(frozen=True, slots=True)
class Moves:
    """What a request has been through: how often it was moved, and why it was the last time."""

    count: int = 0
    reason: str = ""


class MigrationLog:
    """Bounded; those under way are never dropped."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, MigrationEntry] = OrderedDict()
        self._moves: OrderedDict[str, Moves] = OrderedDict()
        self.committed_in: Counter[int] = Counter()
        self.committed_out: Counter[int] = Counter()
        self.num_aborted = 0
        self.num_bytes = 0
        self.downtime_ms = 0.0
        """Of all committed ones together, as `num_bytes` is."""
        self._moving: set[str] = set()

    def take(self, news: MigrationNews) -> None:
        known = self._entries.get(news.migration)
        if known is not None and known.ended_at is not None:
            return  # it was given up for lost, and its end is told after all
        now = time.time()
        is_over = news.state in ("committed", "aborted")
        if known is not None and news.blocks_total is None:
            news = msgspec.structs.replace(news, blocks_total=known.news.blocks_total)
        started_at = known.started_at if known else now
        self._entries[news.migration] = MigrationEntry(news, started_at, now if is_over else None)
        if is_over:
            self._moving.discard(news.request_id)
        else:
            self._moving.add(news.request_id)
        if news.state == "committed":
            self._count(news)
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

    def moves(self, request_id: str) -> Moves:
        """Of the request with this internal id."""
        return self._moves.get(request_id, Moves())

    def num_active(self) -> int:
        return sum(entry.ended_at is None for entry in self._entries.values())

    def _count(self, news: MigrationNews) -> None:
        self.committed_in[news.target] += 1
        self.committed_out[news.source] += 1
        self.num_bytes += news.num_bytes
        self.downtime_ms += news.downtime_ms or 0.0
        request_id = internal_id(news.request_id)
        self._moves[request_id] = Moves(self.moves(request_id).count + 1, news.reason)
        self._moves.move_to_end(request_id)
        if len(self._moves) > KEPT_MOVES:
            self._moves.popitem(last=False)

    def _trim(self) -> None:
        excess = len(self._entries) - KEPT
        for migration in [m for m, e in self._entries.items() if e.ended_at is not None][: max(0, excess)]:
            del self._entries[migration]
