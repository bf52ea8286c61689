"""The journal live as server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from llumnix.admin.journal import Journal
from llumnix.admin.schema import Event

KEEP_ALIVE_S: Final = 15.0
BATCH: Final = 200
RECONNECT_AFTER_MS: Final = 1000


class EventFeed:
    """Streams of events; made and used on one event loop, fed by appends from any thread.

    A stream remembers only how far its client has read and fetches the rest from the journal, so that a slow
    client costs one batch of memory, delays nobody, and gets everything that is still kept.
    """

    def __init__(self, journal: Journal, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._journal = journal
        self._keep_alive_s = keep_alive_s
        self._wakers: set[asyncio.Event] = set()
        self._closed = False

    @property
    def num_clients(self) -> int:
        """Streams that are open."""
        return len(self._wakers)

    def close(self) -> None:
        """End all streams after what they are sending at the moment."""
        self._closed = True
        for waker in self._wakers:
            waker.set()

    async def stream(self, since: int | None) -> AsyncIterator[str]:
        """Yield the events after `since`, or from now on, until the feed closes."""
        waker = asyncio.Event()
        unsubscribe = self._journal.subscribe(_waking(asyncio.get_running_loop(), waker))
        self._wakers.add(waker)
        try:
            seq = self._start(since)
            yield f"retry: {RECONNECT_AFTER_MS}\n\n"
            while not self._closed:
                waker.clear()
                # On a thread: a slow disk must not hold up the daemon's loop.
                events = await asyncio.to_thread(self._journal.since, seq, BATCH)
                for event in events:
                    yield encode(event)
                    seq = event.seq
                if not events and not self._closed and not await self._woken(waker):
                    yield ": keep-alive\n\n"
        finally:
            unsubscribe()
            self._wakers.discard(waker)

    def _start(self, since: int | None) -> int:
        last = self._journal.last_seq
        if since is None:
            return last
        # A number that was never given out is of a journal that is gone: start over rather than wait for it.
        return since if since <= last else 0

    async def _woken(self, waker: asyncio.Event) -> bool:
        try:
            await asyncio.wait_for(waker.wait(), self._keep_alive_s)
        except TimeoutError:
            return False
        return True


def encode(event: Event) -> str:
    """Return an event in the form of server-sent events; JSON holds no line break."""
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"


def _waking(loop: asyncio.AbstractEventLoop, waker: asyncio.Event) -> Callable[[], None]:
    """Return a listener for appends on any thread, also when the loop has ended before the stream."""

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(waker.set)

    return wake
