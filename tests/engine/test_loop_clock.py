"""Heartbeats of a thread that computes, sleeps, or waits for a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from llumnix.core.events import Beat
from llumnix.engine.loop_clock import LoopClock, LoopWatch


def beats_of(
    work: Callable[[threading.Event], None], enough: Callable[[Beat], bool], workers: tuple[int, ...] = ()
) -> Beat:
    """The first beat of a loop stuck in `work` that is `enough`; fails after 30 s without one."""
    clock, ended = LoopClock(), threading.Event()
    clock.thread = thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    clock.workers = workers
    watch = LoopWatch(1, clock)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            beat = watch.beat(time.monotonic())
            if enough(beat):
                return beat
            ended.wait(0.1)
    finally:
        ended.set()
        thread.join()
    raise AssertionError(f"the last beat was {beat}")


def compute(ended: threading.Event) -> None:
    while not ended.is_set():
        sum(range(10_000))


def sleep(ended: threading.Event) -> None:
    ended.wait()


def test_a_sleeping_loop_uses_no_cpu_and_does_not_wait_for_one() -> None:
    beat = beats_of(sleep, lambda beat: beat.loop_age_s > 1.2)
    assert beat.cpu_share < 0.05 and beat.starved_s < 0.2 and beat.step_age_s is None


@pytest.mark.parametrize(("code", "is_busy"), [("while True: pass", True), ("input()", False)])
def test_a_loop_that_waits_for_a_worker_is_as_busy_as_that(code: str, is_busy: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as worker:
        beats_of(
            sleep,
            lambda beat: beat.loop_age_s > 1.5 and (beat.cpu_share > 0.3) is is_busy,
            workers=(worker.pid,),
        )
        worker.kill()
        worker.wait()
        beats_of(sleep, lambda beat: beat.loop_age_s > 1.2 and beat.cpu_share < 0.05, workers=(worker.pid,))


@pytest.fixture
def shared_core() -> Iterator[int]:
    """A core that three other processes keep busy."""
    core = min(os.sched_getaffinity(0))
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        for other in others:
            os.sched_setaffinity(other.pid, {core})
        yield core
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_a_loop_that_waits_for_a_cpu_is_told_from_one_that_wants_none(shared_core: int) -> None:
    def compute_there(ended: threading.Event) -> None:
        os.sched_setaffinity(0, {shared_core})  # of this thread
        compute(ended)

    beat = beats_of(compute_there, lambda beat: beat.starved_s > 0.5)
    assert beat.cpu_share > 0.5 and beat.starved_s < beat.loop_age_s


def test_what_was_waited_before_the_loop_came_round_is_not_counted(shared_core: int) -> None:
    clock = LoopClock()
    watch = LoopWatch(1, clock)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {shared_core})
    try:
        while watch.beat(time.monotonic()).starved_s < 0.3:
            sum(range(10_000))
    finally:
        os.sched_setaffinity(0, before)
    clock.turned_at = time.monotonic()
    assert watch.beat(time.monotonic()).starved_s < 0.3
