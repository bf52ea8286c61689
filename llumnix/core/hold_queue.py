"""Requests that an API server holds until an instance has room for them (late binding)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from llumnix.core.events import HeldRequests

LOOK_AHEAD = 16
"""How many requests behind the first one are looked at, where they may pass it."""


@dataclass(frozen=True, slots=True, order=True)
class HeldRequest:
    """One request in the queue; the order of the fields is the queue's: class, then age."""

    engine_priority: int
    arrived_at: float
    number: int
    key: str
    num_tokens: int
    """Of its prompt, and of its output so far where it ran before."""
    prefix: tuple[int, ...] = ()
    """Keys of the beginning of its prompt (core.prefixes)."""
    is_resumed: bool = False
    """It ran before, and has lost its instance."""


class HoldQueue:
    """One API server's queue in front of its dispatcher; every request goes through it.

    Not thread-safe. Invariants: `_queue` is sorted; it and `_held` have the same requests.
    """

    def __init__(self, overtake_s: float = 0.0) -> None:
        """Requests may pass the first one while it has blocked the queue for less than `overtake_s`."""
        self._overtake_s = overtake_s
        self._blocking: tuple[str, float] | None = None
        """The first request when it found no room, and since when."""
        self._queue: list[HeldRequest] = []
        self._held: dict[str, HeldRequest] = {}
        self._num_tokens = 0
        self._num_pushed = 0

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def __iter__(self) -> Iterator[HeldRequest]:
        return iter(list(self._queue))

    def push(
        self,
        key: str,
        engine_priority: int,
        num_tokens: int,
        arrived_at: float,
        prefix: tuple[int, ...] = (),
        *,
        is_resumed: bool = False,
    ) -> None:
        """Queue a request; `key` is in the queue at most once."""
        assert key not in self._held, key
        number = self._num_pushed
        self._insert(HeldRequest(engine_priority, arrived_at, number, key, num_tokens, prefix, is_resumed))
        self._num_pushed += 1

    def _insert(self, request: HeldRequest) -> None:
        insort(self._queue, request)
        self._held[request.key] = request
        self._num_tokens += request.num_tokens

    def discard(self, key: str) -> HeldRequest | None:
        """Take a request out; None if it is not here."""
        request = self._held.pop(key, None)
        if request is not None:
            del self._queue[bisect_left(self._queue, request)]
            self._num_tokens -= request.num_tokens
        return request

    def set_priority(self, key: str, engine_priority: int) -> bool:
        """Give a request its place in another class, by the same age; False if it is not here."""
        known = self.discard(key)
        if known is None:
            return False
        self._insert(replace(known, engine_priority=engine_priority))
        return True

    def place(self, send: Callable[[HeldRequest], bool], now: float, *, only_resumed: bool = False) -> None:
        """Take out the requests that can be sent, in order, until one cannot.

        `send` asks the dispatcher, and answers whether the request is on its way; it may push any.
        With `only_resumed` they pass all others, which no instance takes.
        """
        position = num_refused = 0
        while position < len(self._queue) and num_refused <= self._num_who_may_pass(now):
            request = self._queue[position]
            if only_resumed and not request.is_resumed:
                position += 1
                continue
            self.discard(request.key)
            if not send(request):
                self._insert(request)
                self._note_blocking(now)
                position += 1
                num_refused += 1

    def _note_blocking(self, now: float) -> None:
        first = self._queue[0].key
        if self._blocking is None or self._blocking[0] != first:
            self._blocking = (first, now)

    def _num_who_may_pass(self, now: float) -> int:
        since = now if self._blocking is None else self._blocking[1]
        return LOOK_AHEAD if now - since < self._overtake_s else 0

    def summary(self, api_server: int) -> HeldRequests:
        """What the global scheduler is told of the queue."""
        head = self._queue[0] if self._queue else None
        return HeldRequests(
            api_server=api_server,
            num_requests=len(self._queue),
            num_tokens=self._num_tokens,
            head_tokens=head.num_tokens if head else 0,
            head_priority=head.engine_priority if head else 0,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        assert self._queue == sorted(self._held.values())
        assert self._num_tokens == sum(request.num_tokens for request in self._queue)
