"""Requests that an operator has moved together: they leave one by one, and what cannot says why."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.sim.engines import build_engine as build_engine  # first: sets what vLLM reads when it is imported

from llumnix.wire import MigrationNews, Move  # isort: skip
from tests.benchmarks.bench_faults import ADDRESS, SETTINGS, build_world  # isort: skip


class Watched:
    """A world, the news of its migrations, and orders to instance 1."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = build_world(directory, seed=1)
        self.news: list[MigrationNews] = []
        deliver = self.world._deliver

        def watch(uid: int, message: object) -> None:
            if isinstance(message, MigrationNews):
                self.news.append(message)
            deliver(uid, message)

        monkeypatch.setattr(self.world, "_deliver", watch)
        self.world.fill()
        self.world.run(0.2)
        self.ids = self.world.live(1)
        self.world.instances[2].post(lambda: self.world._abort(2, self.world.live(2)))  # room for all

    def move(self, target: int, *ids: str) -> None:
        order = Move(1, ids[0], target, ADDRESS, "why", then=ids[1:])
        llumlet = self.world.instances[1].llumlet

        def begin() -> None:
            llumlet.move(order.request_id, order.target, order.address, order.reason)
            llumlet.move_in_turn(order)

        self.world.instances[1].post(begin)

    def ended(self, state: str) -> dict[str, str]:
        return {news.request_id: news.why for news in self.news if news.state == state}


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


def test_all_leave_and_never_more_at_once_than_may(watched: Watched) -> None:
    assert len(watched.ids) > SETTINGS.max_concurrent + 1
    watched.move(2, *watched.ids)
    watched.world.run(1.0)
    assert watched.ended("committed").keys() == set(watched.ids)
    assert watched.ended("aborted") == {} and not set(watched.ids) & set(watched.world.live(1))
    under_way: set[str] = set()
    for news in watched.news:
        (under_way.discard if news.state in ("committed", "aborted") else under_way.add)(news.migration)
        assert len(under_way) <= SETTINGS.max_concurrent


def test_what_has_ended_is_passed_over_and_what_cannot_leave_says_why(watched: Watched) -> None:
    first, ended, last = watched.ids[:3]
    watched.world.instances[1].post(lambda: watched.world._abort(1, [ended]))
    watched.move(2, first, first, ended, last)
    watched.world.run(1.0)
    assert watched.ended("committed").keys() == {first, last}
    [(named_twice, why)] = watched.ended("aborted").items()
    assert named_twice == first and "already" in why
    watched.world.check("at the end")
    assert watched.world.problems == []


def test_messages_carry_what_follows() -> None:
    order = Move(1, "a", 2, ADDRESS, "why", then=("b", "c"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(order), type=Move) == order
