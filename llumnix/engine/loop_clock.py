"""How the engine loop's thread fares: when it last came round, its CPU time, and its waits for a CPU."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from llumnix.core.events import Beat

_WINDOW_S = 1.0


class LoopClock:
    """When the engine loop last came round; written by the engine thread, read by others.

    Each field is one reference, so a reader sees an old or a new value, never half of one.
    """

    def __init__(self) -> None:
        self.turned_at = time.monotonic()
        self.step_since: float | None = None
        self.thread = threading.current_thread()


@dataclass(frozen=True, slots=True)
class _Look:
    """What the thread had used by a moment, in seconds."""

    at: float
    on_cpu_s: float
    waiting_for_cpu_s: float


class LoopWatch:
    """Makes heartbeats of what it sees of the engine loop; for one thread beside it, some times a second."""

    def __init__(self, uid: int, clock: LoopClock) -> None:
        self._uid = uid
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._looks: list[_Look] = []
        self._turned_at = clock.turned_at
        self._waited_before_turn_s = 0.0

    def beat(self, now: float) -> Beat:
        """The heartbeat that is due now (time.monotonic())."""
        turned_at, step_since = self._clock.turned_at, self._clock.step_since
        look = self._look(now)
        if turned_at != self._turned_at:
            self._turned_at = turned_at
            # Of the last look before: what was waited since then may be from before the turn.
            before = self._looks[-1] if self._looks else look
            self._waited_before_turn_s = before.waiting_for_cpu_s
        while len(self._looks) > 1 and self._looks[1].at <= now - _WINDOW_S:
            self._looks.pop(0)
        self._looks.append(look)
        return Beat(
            uid=self._uid,
            loop_age_s=max(0.0, now - turned_at),
            step_age_s=None if step_since is None else max(0.0, now - step_since),
            cpu_share=self._cpu_share(look),
            starved_s=look.waiting_for_cpu_s - self._waited_before_turn_s,
        )

    def _look(self, now: float) -> _Look:
        thread = self._clock.thread
        if thread is not self._thread:
            self._thread = thread
            self._cpu_clock = time.pthread_getcpuclockid(thread.ident or 0)
            self._schedstat = Path(f"/proc/self/task/{thread.native_id}/schedstat")
            self._looks = []
            self._waited_before_turn_s = _waiting_for_cpu_s(self._schedstat)
        return _Look(now, time.clock_gettime(self._cpu_clock), _waiting_for_cpu_s(self._schedstat))

    def _cpu_share(self, now: _Look) -> float:
        """Of the window's time in which the thread did not wait for a CPU."""
        then = self._looks[0]
        free_s = now.at - then.at - (now.waiting_for_cpu_s - then.waiting_for_cpu_s)
        return min(1.0, (now.on_cpu_s - then.on_cpu_s) / free_s) if free_s > 0 else 1.0


def _waiting_for_cpu_s(schedstat: Path) -> float:
    """Time on a run queue, as Linux counts it; 0 where it does not."""
    try:
        return int(schedstat.read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
