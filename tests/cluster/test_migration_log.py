"""The manager's view of migrations: what it is told, what it keeps."""

from __future__ import annotations

from typing import Any

import pytest

from llumnix.admin.schema import DrainTotals, MigrationPair
from llumnix.cluster import migration_log
from llumnix.cluster.migration_log import KEPT, Ended, MigrationLog
from llumnix.cluster.migration_views import drain_view, totals_view
from llumnix.wire import MigrationNews


def news(migration: str, state: str, **more: Any) -> MigrationNews:
    values: dict[str, Any] = {
        "migration": migration,
        "request_id": f"r-{migration}@0.0",
        "source": 1,
        "target": 2,
        "reason": "test",
        "state": state,
        "why": "",
        "stages": 0,
        "blocks_sent": 0,
        "blocks_skipped": 0,
        "num_bytes": 0,
        "copy_ms": 0.0,
        "downtime_ms": None,
    }
    return MigrationNews(**(values | more))


def test_a_migration_is_under_way_from_its_first_news_to_its_last() -> None:
    log = MigrationLog()
    log.take(news("m", "prepare"))
    assert log.num_active() == 1 and log.moving() == {"r-m@0.0"}
    log.take(news("m", "committed", blocks_sent=7))
    assert log.num_active() == 0 and log.moving() == set()
    (entry,) = log.entries()
    assert entry.news.blocks_sent == 7
    assert entry.ended_at is not None and entry.started_at <= entry.ended_at


def test_committed_ones_count_at_both_ends_and_aborted_ones_at_none() -> None:
    log = MigrationLog()
    for migration, state in (("a", "committed"), ("b", "aborted"), ("c", "committed")):
        log.take(news(migration, "prepare"))
        log.take(news(migration, state, target=3))
    assert (log.committed_out[1], log.committed_in[3], log.num_aborted) == (2, 2, 1)
    assert log.committed_in[1] == log.committed_out[3] == 0


def test_the_end_of_a_dead_sources_migrations_is_told_in_its_place() -> None:
    log = MigrationLog()
    log.take(news("mine", "prepare"))
    log.take(news("others", "prepare", source=9))
    log.take(news("over", "committed"))
    log.source_lost(1, "killed")
    by_id = {entry.news.migration: entry.news for entry in log.entries()}
    assert (by_id["mine"].state, by_id["mine"].why) == ("aborted", "the source died: killed")
    assert by_id["others"].state == "prepare"
    assert by_id["over"].state == "committed"
    assert log.moving() == {"r-others@0.0"}


def test_the_oldest_that_are_over_make_room_and_those_under_way_never_do() -> None:
    log = MigrationLog()
    log.take(news("long", "prepare"))
    for k in range(KEPT + 10):
        log.take(news(f"m{k}", "prepare"))
        log.take(news(f"m{k}", "aborted"))
    kept = [entry.news.migration for entry in log.entries()]
    assert len(kept) == KEPT
    assert kept[0] == "long" and kept[-1] == f"m{KEPT + 9}" and "m0" not in kept
    assert log.num_aborted == KEPT + 10


def test_a_stage_tells_how_far_it_is_and_the_total_stays() -> None:
    log = MigrationLog()
    log.take(news("m", "prepare"))
    log.take(news("m", "copying", stages=1, blocks_sent=8, blocks_total=30))
    (entry,) = log.entries()
    assert (entry.news.state, entry.news.blocks_sent, entry.ended_at) == ("copying", 8, None)
    assert log.num_active() == 1 and log.moving() == {"r-m@0.0"}
    log.take(news("m", "committed", blocks_sent=29))
    (entry,) = log.entries()
    assert (entry.news.blocks_sent, entry.news.blocks_total) == (29, 30)


def test_a_request_knows_its_moves_under_whatever_epoch() -> None:
    log = MigrationLog()
    log.take(news("a", "committed", request_id="r@0.0", reason="drain of i1", num_bytes=5, downtime_ms=2.0))
    log.take(news("b", "aborted", request_id="r@0.1", reason="never"))
    log.take(news("c", "committed", request_id="r@0.1", reason="relief", num_bytes=7, downtime_ms=3.5))
    assert (log.moves("r").count, log.moves("r").reason) == (2, "relief")
    assert log.moves("other").count == 0
    assert (log.num_bytes, log.downtime_ms) == (12, 5.5)


def test_what_was_given_up_for_lost_does_not_end_twice() -> None:
    log = MigrationLog()
    log.take(news("m", "prepare"))
    log.source_lost(1, "killed")
    log.take(news("m", "committed"))
    assert (log.num_aborted, log.committed_out.total()) == (1, 0)


def ends(log: MigrationLog, count: int, state: str = "committed", **more: Any) -> None:
    """So many migrations end, each with an id of its own."""
    for _ in range(count):
        log.take(news(f"m{log.committed_out.total() + log.num_aborted}", state, **more))


def test_totals_of_pairs_go_on_where_the_list_of_migrations_ends() -> None:
    log = MigrationLog()
    ends(log, KEPT + 500)
    ends(log, 3, "aborted")
    ends(log, 2, source=4)
    shown = totals_view(log, {1: "i0", 2: "i1", 4: "i0"})
    assert shown.pairs == (MigrationPair(source="i0", target="i1", committed=KEPT + 502, aborted=3),), (
        "two processes of one instance are one row"
    )
    assert (shown.others_committed, shown.others_aborted) == (0, 0)


def test_pairs_that_had_none_for_long_are_dropped_into_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration_log, "KEPT_PAIRS", 2)
    log = MigrationLog()
    for target, count in ((2, 5), (3, 4), (2, 1), (4, 1)):
        ends(log, count, target=target)
    assert log.pairs() == {(1, 2): Ended(6), (1, 4): Ended(1)}
    assert log.other_pairs == Ended(4)


def test_a_drain_counts_what_ended_since_it_began_however_much_that_is() -> None:
    log = MigrationLog()
    ends(log, 7)
    assert log.drained(1) is None
    log.drain_began(1, 50.0)
    ends(log, KEPT + 100)
    log.drain_began(1, 50.0)  # the same one
    ends(log, 2, "aborted")
    ends(log, 9, source=3)
    shown = drain_view(log, 1)
    assert shown is not None and (shown.moved, shown.aborted) == (KEPT + 100, 2)
    log.drain_began(1, 90.0)
    again = drain_view(log, 1)
    assert again is not None and again == DrainTotals(since=again.since, moved=0, aborted=0)


def test_drains_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration_log, "KEPT_DRAINS", 2)
    log = MigrationLog()
    for uid in (1, 2, 3):
        log.drain_began(uid, 1.0)
    assert [log.drained(uid) is None for uid in (1, 2, 3)] == [True, False, False]
