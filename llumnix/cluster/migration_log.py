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

KEPT_PAIRS = 10_000
"""Of a source and a target process, the latest ones: more than 64 instances have with each other."""
KEPT_DRAINS = 1_000

Pair = tuple[int, int]
"""The uids of a source and a target."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How many migrations have ended, and how."""

    committed: int = 0
    aborted: int = 0

    def plus(self, other: Ended) -> Ended:
        return Ended(self.committed + other.committed, self.aborted + other.aborted)

    def minus(self, other: Ended) -> Ended:
        return Ended(self.committed - other.committed, self.aborted - other.aborted)


@dataclass(frozen=True, slots=True)
class DrainMark:
    """What had ended when a drain began."""

    order_at: float
    """By the scheduler's clock: tells one drain from the next."""
    noted_at: float
    """Unix time."""
    ended: Ended


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
    """Bounded, and yet its totals are true; those under way are never dropped."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, MigrationEntry] = OrderedDict()
        self._moves: OrderedDict[str, Moves] = OrderedDict()
        self.committed_in: Counter[int] = Counter()
        self.committed_out: Counter[int] = Counter()
        self.aborted_out: Counter[int] = Counter()
        self.num_aborted = 0
        self.num_bytes = 0
        self.downtime_ms = 0.0
        """Of all committed ones together, as `num_bytes` is."""
        self._moving: set[str] = set()
        self.since = time.time()
        """When the counting began (Unix time)."""
        self._pairs: OrderedDict[Pair, Ended] = OrderedDict()
        self.other_pairs = Ended()
        """Sum of those that were dropped: with `pairs` it makes all that have ended."""
        self._drains: OrderedDict[int, DrainMark] = OrderedDict()

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
            self._count_pair((news.source, news.target), Ended(committed=1))
        elif is_over:
            self.num_aborted += 1
            self.aborted_out[news.source] += 1
            self._count_pair((news.source, news.target), Ended(aborted=1))
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

    def pairs(self) -> dict[Pair, Ended]:
        """What has ended since the start, by source and target."""
        return dict(self._pairs)

    def drain_began(self, uid: int, order_at: float) -> None:
        """Count from here on what the drain moves; one that is known already goes on."""
        known = self._drains.get(uid)
        if known is None or known.order_at != order_at:
            self._drains[uid] = DrainMark(order_at, time.time(), self._ended_from(uid))
            self._drains.move_to_end(uid)
            if len(self._drains) > KEPT_DRAINS:
                self._drains.popitem(last=False)

    def drained(self, uid: int) -> tuple[float, Ended] | None:
        """Since when (Unix time) the latest drain of a process counts, and what has ended since then."""
        mark = self._drains.get(uid)
        return None if mark is None else (mark.noted_at, self._ended_from(uid).minus(mark.ended))

    def _ended_from(self, uid: int) -> Ended:
        return Ended(self.committed_out[uid], self.aborted_out[uid])

    def _count_pair(self, pair: Pair, ended: Ended) -> None:
        self._pairs[pair] = self._pairs.get(pair, Ended()).plus(ended)
        self._pairs.move_to_end(pair)
        if len(self._pairs) > KEPT_PAIRS:
            self.other_pairs = self.other_pairs.plus(self._pairs.popitem(last=False)[1])

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
