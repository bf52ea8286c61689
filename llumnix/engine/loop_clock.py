"""How the engine loop fares: when it last came round, its CPU time, and its waits for a CPU.

A step is computed by the loop's own thread, or by workers in processes of their own, for whom the loop waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from llumnix.core.events import Beat

_WINDOW_S = 1.0


class LoopClock:
    """When the engine loop last came round; written by the engine thread, read by others.

    Each field is one reference, so a reader sees an old or a new value, never half of one.
    """

    def __init__(self) -> None:
        self.turned_at = time.monotonic()
        self.step_since: float | None = None
        """Of a model step, or an engine-wide call."""
        self.may_wait = False
        """The call may take its time without a CPU."""
        self.thread = threading.current_thread()
        self.workers: tuple[int, ...] = ()
        """Processes that a step waits for."""

    @contextmanager
    def call(self, *, may_wait: bool) -> Iterator[None]:
        """While the engine thread makes an engine-wide call."""
        self.may_wait = may_wait
        self.step_since = time.monotonic()
        try:
            yield
        finally:
            self.step_since = None
            self.may_wait = False


@dataclass(frozen=True, slots=True)
class _Use:
    """What a thread had used by a moment, in seconds."""

    on_cpu_s: float
    waiting_for_cpu_s: float


@dataclass(frozen=True, slots=True)
class _Look:
    """At the loop's thread and its workers, in one order."""

    at: float
    uses: tuple[_Use, ...]


class LoopWatch:
    """Makes heartbeats of what it sees of the engine loop; for one thread beside it, some times a second."""

    def __init__(self, uid: int, clock: LoopClock) -> None:
        self._uid = uid
        self._clock = clock
        self._watched: tuple[threading.Thread, tuple[int, ...]] | None = None
        self._meters: list[Callable[[], _Use]] = []
        self._looks: list[_Look] = []
        self._turned_at = clock.turned_at
        self._at_turn: tuple[_Use, ...] = ()

    def beat(self, now: float) -> Beat:
        """The heartbeat that is due now (time.monotonic())."""
        turned_at, step_since = self._clock.turned_at, self._clock.step_since
        look = self._look(now)
        if turned_at != self._turned_at:
            self._turned_at = turned_at
            # Of the last look before: what was waited since then may be from before the turn.
            self._at_turn = (self._looks[-1] if self._looks else look).uses
        while len(self._looks) > 1 and self._looks[1].at <= now - _WINDOW_S:
            self._looks.pop(0)
        self._looks.append(look)
        waits = zip(look.uses, self._at_turn, strict=True)
        return Beat(
            uid=self._uid,
            loop_age_s=max(0.0, now - turned_at),
            step_age_s=None if step_since is None else max(0.0, now - step_since),
            cpu_share=self._cpu_share(look),
            starved_s=max(use.waiting_for_cpu_s - before.waiting_for_cpu_s for use, before in waits),
            may_wait=step_since is not None and self._clock.may_wait,
        )

    def _look(self, now: float) -> _Look:
        watched = self._clock.thread, self._clock.workers
        if watched != self._watched:
            self._watched = watched
            thread, workers = watched
            self._meters = [_meter_of_thread(thread), *map(_meter_of_process, workers)]
            self._looks = []
            self._at_turn = tuple(meter() for meter in self._meters)
        return _Look(now, tuple(meter() for meter in self._meters))

    def _cpu_share(self, now: _Look) -> float:
        """Of the time in which it did not wait for a CPU: the loop's thread, or its busiest worker."""
        then = self._looks[0]
        elapsed_s = now.at - then.at
        return max(_share(use, before, elapsed_s) for use, before in zip(now.uses, then.uses, strict=True))


def _share(now: _Use, then: _Use, elapsed_s: float) -> float:
    free_s = elapsed_s - (now.waiting_for_cpu_s - then.waiting_for_cpu_s)
    return min(1.0, (now.on_cpu_s - then.on_cpu_s) / free_s) if free_s > 0 else 1.0


def _meter_of_thread(thread: threading.Thread) -> Callable[[], _Use]:
    clock = time.pthread_getcpuclockid(thread.ident or 0)
    schedstat = Path(f"/proc/self/task/{thread.native_id}/schedstat")
    return lambda: _Use(time.clock_gettime(clock), _waiting_for_cpu_s(schedstat))


def _meter_of_process(pid: int) -> Callable[[], _Use]:
    """Of all its threads on a CPU, of its first one waiting for it; nothing more once it is dead."""
    schedstat = Path(f"/proc/{pid}/schedstat")
    last = _Use(0.0, 0.0)

    def read() -> _Use:
        nonlocal last
        try:
            times = psutil.Process(pid).cpu_times()
            last = _Use(times.user + times.system, _waiting_for_cpu_s(schedstat))
        except psutil.NoSuchProcess:
            pass
        return last

    return read


def _waiting_for_cpu_s(schedstat: Path) -> float:
    """Time on a run queue, as Linux counts it; 0 where it does not."""
    try:
        return int(schedstat.read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
