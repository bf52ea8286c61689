"""An API server's own eye on instances that say nothing any more."""

from __future__ import annotations

from llumnix.frontend.silence import SilenceWatch


def looking(watch: SilenceWatch, uids: set[int], since: float, until: float) -> dict[int, float]:
    """What is silent at `until`, after looks every 0.5 s."""
    now = since
    while now < until:
        watch.silent(uids, now)
        now += 0.5
    return watch.silent(uids, until)


def test_who_says_nothing_beyond_the_limit_is_silent() -> None:
    watch = SilenceWatch(10.0, now=0.0)
    watch.heard(1, 3.0)
    watch.heard(2, 9.0)
    assert looking(watch, {1, 2}, 0.0, 13.0) == {}
    assert looking(watch, {1, 2}, 13.0, 13.5) == {1: 10.5}


def test_a_new_instance_has_the_whole_limit() -> None:
    watch = SilenceWatch(10.0, now=0.0)
    assert looking(watch, {1}, 0.0, 100.0).keys() == {1}
    assert looking(watch, {1, 2}, 100.0, 109.0).keys() == {1}
    assert looking(watch, {1, 2}, 109.0, 111.0).keys() == {1, 2}


def test_time_in_which_this_process_stood_still_does_not_count() -> None:
    watch = SilenceWatch(10.0, now=0.0)
    watch.heard(1, 5.0)
    assert looking(watch, {1}, 0.0, 8.0) == {}
    assert watch.silent({1}, 30.0) == {}
    assert looking(watch, {1}, 30.5, 36.5) == {}
    assert looking(watch, {1}, 36.5, 38.0) == {1: 11.0}


def test_one_that_left_is_forgotten() -> None:
    watch = SilenceWatch(10.0, now=0.0)
    assert looking(watch, {1}, 0.0, 11.0) == {1: 11.0}
    assert watch.silent(set(), 11.5) == {}
    assert watch.silent({1}, 12.0) == {}
