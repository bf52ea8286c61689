"""The pure functions: text, numbers, bars, tables and the figures that are derived."""

import math

import pytest

from llumnix.admin.schema import Event, Migration, MigrationPair, MigrationTotals, PriorityClass
from llumnix_tui.commands import Target, migrate, set_priority
from llumnix_tui.render import migrations, questions, values
from llumnix_tui.render.bars import chart, progress_bar, sparkline, usage_bar
from llumnix_tui.render.columns import Column, Sort, arrange, fit_columns
from llumnix_tui.render.drain import progress, so_far
from llumnix_tui.render.instance import over_time
from llumnix_tui.render.instances import about, instance_columns, instance_rows, kv_cell, node_line
from llumnix_tui.render.load import predicted_freeness
from llumnix_tui.render.overview import header_line, kv_of, totals
from llumnix_tui.render.requests import columns
from llumnix_tui.render.states import LOOKS, state
from llumnix_tui.render.text import BAD, GOOD, fitted, line, plain, width_of
from llumnix_tui.snapshot import History, Series, Snapshot
from llumnix_tui.store import Store
from tests.tui.canned import BLOCKS, CLASSES, NOW, Canned


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "0"), (999, "999"), (12345, "12.3k"), (456_000, "456k"), (2.5e6, "2.5M")],
)
def test_counts_take_five_characters(value: float | None, shown: str) -> None:
    assert values.count(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "–"), (0.44, "0.4s"), (59, "59s"), (187, "3m07"), (7500, "2h05"), (273600, "3d04")],
)
def test_ages(seconds: float | None, shown: str) -> None:
    assert values.age(seconds) == shown


@pytest.mark.parametrize(
    ("num_bytes", "shown"), [(None, "–"), (512, "512 B"), (70 << 20, "70.0 MiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes(num_bytes: float | None, shown: str) -> None:
    assert values.size(num_bytes) == shown


def test_decimals_keep_three_digits() -> None:
    assert [values.decimal(value) for value in (None, 2.5, 24.13, 231.4, -3.0)] == [
        "–",
        "2.50",
        "24.1",
        "231",
        "-3.00",
    ]
    assert values.percent(1, 0) == "–"
    assert values.milliseconds(1234) == "1.23 s"


def test_fitted_text_has_exactly_its_width_also_with_wide_characters() -> None:
    assert plain(fitted(line("ab"), 4)) == "ab  "
    assert plain(fitted(line("ab"), 4, right=True)) == "  ab"
    assert plain(fitted((("abc", ""), ("def", GOOD)), 5)) == "abcd…"
    for width in range(8):
        assert width_of(fitted(line("日本語 text"), width)) <= width


def test_a_bar_shows_usage_then_what_virtual_usage_holds_beyond() -> None:
    assert plain(usage_bar(40, 60, 100, 10)) == "████▒▒····"
    assert plain(usage_bar(40, None, 100, 10)) == "████······"
    assert plain(usage_bar(40, 250, 100, 10)) == "████▒▒▒▒▒▒"
    assert plain(usage_bar(1, None, 1000, 10)) == "█·········"
    assert plain(usage_bar(0, None, 0, 3)) == "···"
    assert usage_bar(95, None, 100, 10)[0][1] == BAD


def test_progress_without_a_total_is_not_made_up() -> None:
    assert plain(progress_bar(5, None, 4)) == "····"
    assert plain(progress_bar(5, 10, 4)) == "██··"


def test_sparklines_and_charts_show_all_values_averaged_to_fit() -> None:
    assert sparkline([0, 1, 2, 7], 4) == "▁▂▃█"
    assert sparkline([0, 2, 3, 5, 7, 7], 3, top=7) == "▂▅█"
    assert sparkline([7, 0, 0, 0, 0], 2, top=7) == "▅▁"
    assert sparkline([1, 2, 3], 0) == ""
    assert sparkline([1, 1], 4, top=1) == "  ██"
    assert sparkline([], 3) == "   "
    assert chart([0, 0.5, 1.0], 3, 2, top=1.0) == ["  █", " ██"]
    assert chart([0, 0, 1.0, 1.0], 2, 1, top=1.0) == [" █"]


def test_trends_show_all_that_is_kept_and_name_its_span() -> None:
    history, snapshot = History(), Canned().snapshot()
    for ago in range(240, 0, -1):
        used = BLOCKS if ago > 120 else 0  # full in the first half, then empty
        item = snapshot.instances[0].model_copy(update={"kv_blocks_used": used})
        history.add(snapshot.model_copy(update={"taken_at": NOW - ago, "instances": (item,)}))
    trends = plain(about(snapshot.instances[0], history, 80)[0])
    assert "KV ██████▅▁▁▁▁▁▁  tok/s" in trends
    assert trends.endswith("last 3m59")
    assert width_of(line(trends)) <= 78
    rows = [plain(row) for row in over_time(history.of("i0"), 80)]
    assert rows[0].startswith(f"100% {'█' * 31}") and rows[0].endswith(" " * 31)
    assert rows[-1].endswith("  last 3m59")
    assert plain(totals(snapshot, history.cluster, 120)[2]).endswith("last 3m59")
    assert all(width_of(row) <= 78 for row in totals(snapshot, history.cluster, 80))


def test_every_state_has_a_glyph_and_its_word() -> None:
    assert all(
        plain(state(word)).endswith(word) and plain(state(word))[0] == LOOKS[word][0] for word in LOOKS
    )
    assert plain(state("new")) == "? new"


ROWS = [("b", 2.0), ("a", None), ("c", 1.0)]
COLUMNS: list[Column[tuple[str, float | None]]] = [
    Column("NAME", 4, lambda row: line(row[0]), lambda row: row[0], "N"),
    Column("LOAD", 4, lambda row: line(str(row[1])), lambda row: row[1], "L", stretches=True),
    Column("MORE", 9, lambda row: line(""), min_width=30),
]


def test_unknown_values_come_last_either_way() -> None:
    def names(sort: Sort | None, wanted: str = "") -> str:
        return "".join(row[0] for row in arrange(ROWS, COLUMNS, sort, wanted, str))

    assert names(None) == "bac"
    assert names(Sort("L")) == "cba"
    assert names(Sort("L").pressed("L")) == "bca"
    assert names(Sort("X")) == "bac"
    assert names(None, "NONE a") == "a"


def test_columns_fit_the_width() -> None:
    assert [(column.title, width) for column, width in fit_columns(COLUMNS, 20)] == [
        ("NAME", 4),
        ("LOAD", 15),
    ]
    assert [column.title for column, _ in fit_columns(COLUMNS, 30)] == ["NAME", "LOAD", "MORE"]


def test_predicted_freeness_follows_algorithm_1() -> None:
    snapshot = Canned().snapshot()
    assert snapshot.requests is not None
    target = snapshot.instances[1].model_copy(
        update={"kv_blocks_virtual": 100, "running": 4, "kv_blocks_total": 200, "priorities": ()}
    )
    request = snapshot.requests[1].model_copy(update={"kv_blocks": 20, "priority": "normal"})
    assert predicted_freeness(target, request, snapshot.cluster) == (200 - 100 - 20) / 5
    # Nothing of class high runs there: its headroom of 1600 tokens, 100 blocks, comes with the request.
    high = request.model_copy(update={"priority": "high"})
    assert predicted_freeness(target, high, snapshot.cluster) == (200 - 100 - 100 - 20) / 5
    # In the paper's form the headroom is all but a target load, here of 2400 tokens or 150 blocks.
    target_load = snapshot.cluster.priorities[0].model_copy(update={"target_load_tokens": 2400})
    paper = snapshot.cluster.model_copy(update={"priorities": (target_load,)})
    assert predicted_freeness(target, high, paper) == (200 - 100 - 50 - 20) / 5
    assert predicted_freeness(snapshot.instances[3], request, snapshot.cluster) is None


def test_virtual_usage_is_summed_over_those_that_tell() -> None:
    instances = Canned().snapshot().instances
    used, virtual, total = kv_of(instances)
    assert (used, total) == (sum(item.kv_blocks_used for item in instances), 8000)
    assert virtual == sum(item.kv_blocks_virtual or 0 for item in instances)
    assert kv_of(instances[3:])[1] is None


def test_nodes_have_rows_only_where_there_are_several() -> None:
    assert [row.id for row in instance_rows(Canned(4).snapshot())] == ["i0", "i1", "i2", "i3"]
    rows = instance_rows(Canned(4, num_nodes=2).snapshot())
    assert [row.id for row in rows] == ["node-0", "i0", "i1", "node-1", "i2", "i3"]
    banner = node_line(rows[0])
    assert banner is not None
    assert plain(banner).startswith("node-0  10.0.0.1  ● ready  head  2 instances")


def test_instances_fit_80_columns_and_show_each_class() -> None:
    snapshot = Canned(4).snapshot()
    shown = fit_columns(instance_columns(CLASSES, History()), 77)
    assert sum(width for _, width in shown) + len(shown) - 1 <= 77
    cells = {column.title: plain(column.cell(snapshot.instances[1])) for column, _ in shown}
    assert cells["STATE"] == "● running"
    assert cells["HIGH"] == "1/0"
    assert cells["IN/OUT"] == "1/2"
    assert plain(kv_cell(snapshot.instances[3])).endswith("–")  # draining: virtual usage is infinite


def test_missing_data_are_dashes() -> None:
    snapshot = Canned().snapshot()
    bare = snapshot.model_copy(update={"cluster": snapshot.cluster.model_copy(update={"latency": None})})
    text = "\n".join(plain(row) for row in totals(bare, Series(), 80))
    assert "TTFT –  TPOT –" in text
    assert "wanted 4 of 2..64" in text


def test_the_clusters_line_shortens_instances_before_the_policys_name() -> None:
    snapshot = Canned(4).snapshot()
    assert plain(totals(snapshot, Series(), 80)[0]) == (
        "● serving  3 running, 1 draining  wanted 4 of 2..64, auto  policy llumnix+"
    )
    cluster = snapshot.cluster.model_copy(update={"reason": "not serving: i3, i5, i6", "state": "degraded"})
    crowded = plain(totals(snapshot.model_copy(update={"cluster": cluster}), Series(), 80)[0])
    assert crowded.startswith("◐ degraded  not serving: i3, i5, i6…")
    assert crowded.endswith("  policy llumnix+") and len(crowded) <= 78


def test_the_header_tells_connection_and_age() -> None:
    store = Store()

    def header(**flags: bool) -> str:
        options = {"paused": False, "read_only": False, **flags}
        return plain(header_line(store, "http://x", NOW + 5, **options))

    assert header() == "llumnix  ◌ connecting  http://x"
    store.lost("no answer from http://x")
    assert header() == "llumnix  ✖ disconnected, retry 1  no data yet  no answer from http://x"
    store.take(Canned().snapshot())
    assert header(paused=True, read_only=True) == "canned  ● live  age 5.0s  ‖ paused  read-only  http://x"
    store.lost("gone")
    store.lost("gone")
    assert header() == "canned  ✖ disconnected, retry 2  data 5.0s old  gone"


def migration(number: int, source: str, target: str, **changes: object) -> Migration:
    made = Migration(
        id=f"m{number}",
        request="r",
        source=source,
        target=target,
        state="committed",
        started_at=NOW,
        ended_at=NOW,
    )
    return made.model_copy(update=changes)


def test_the_matrix_counts_pairs_and_says_what_it_leaves_out() -> None:
    moves = pair_totals(("i0", "i1", 1203, 1), ("i2", "i0", 0, 3))
    assert [plain(row).split() for row in migrations.matrix(moves, 80, 9)] == [
        ["from\\to", "i1"],
        ["i0", "1203"],
    ]
    many = pair_totals(*((f"i{number}", f"i{number + 1}", 1, 0) for number in range(30)))
    assert "left out" in plain(migrations.matrix(many, 40, 5)[-1])
    assert plain(migrations.matrix(pair_totals(), 40, 5)[0]) == "no migration has ended yet"


def pair_totals(*pairs: tuple[str, str, int, int]) -> MigrationTotals:
    return MigrationTotals(
        since=NOW,
        pairs=tuple(MigrationPair(source=s, target=t, committed=c, aborted=a) for s, t, c, a in pairs),
    )


def with_totals(snapshot: Snapshot, at: float, committed: int, aborted: int = 0) -> Snapshot:
    totals = snapshot.cluster.totals.model_copy(
        update={"migrations_committed": committed, "migrations_aborted": aborted}
    )
    cluster = snapshot.cluster.model_copy(update={"totals": totals})
    return snapshot.model_copy(update={"taken_at": at, "cluster": cluster})


def per_minute(snapshot: Snapshot, history: History) -> list[tuple[int, int]]:
    return [(m.committed, m.aborted) for m in migrations.per_minute(snapshot, history.moves)]


def test_migrations_per_minute_are_those_of_a_whole_list() -> None:
    ends = tuple(migration(n, "a", "b", ended_at=NOW - ago) for n, ago in enumerate((1, 59, 61, 130, 9999)))
    snapshot = with_totals(Canned().snapshot(migrations=ends), NOW, 5)
    assert per_minute(snapshot, History()) == [(0, 0)] * 17 + [(1, 0), (1, 0), (2, 0)]


def test_minutes_beyond_a_list_that_was_cut_are_not_called_empty() -> None:
    """The list has 500; with 300 moves a minute it reaches back for one whole minute only."""
    ends = tuple(migration(n, "a", "b", ended_at=NOW - n / 5) for n in range(500))
    snapshot = with_totals(Canned().snapshot(migrations=ends), NOW, 6000)
    assert per_minute(snapshot, History()) == [(300, 0)]


def test_the_daemons_counters_tell_the_minutes_that_were_watched() -> None:
    history, snapshot = History(), Canned().snapshot(migrations=())
    for second in range(601):
        history.add(with_totals(snapshot, NOW - 600 + second, 1000 + 5 * second, second // 10))
    now = with_totals(snapshot, NOW, 4000, 60)
    assert per_minute(now, history) == [(300, 6)] * 10
    shown = [plain(row) for row in migrations.summary(now, history.moves, 78)]
    assert "last minute 300+6" in shown[1]
    assert shown[1].rstrip().endswith("█" * 10)
    # Another daemon counts from 0 again.
    history.add(with_totals(snapshot, NOW + 1, 3))
    assert [sample.committed for sample in history.moves] == [3]


def test_of_a_list_that_was_cut_the_trend_fits_and_its_latest_minute_is_shown() -> None:
    snapshot = Canned().snapshot()
    first, second = migrations.summary(snapshot, (), 78)
    assert width_of(first) <= 78 and width_of(second) <= 78
    assert plain(second).startswith("downtime p50/99 2.90/3.20 ms of 7  last minute 2+1  per minute ")
    assert migrations.percentile([], 0.5) is None
    assert migrations.percentile([1.0, 2.0, 3.0], 0.99) == 3.0


def test_running_migrations_come_first() -> None:
    found = migrations.ordered(Canned().snapshot().migrations)
    assert [item.state for item in found][:2] == ["copying", "committed"]


def test_a_drain_tells_what_is_left_what_moves_and_the_end() -> None:
    snapshot = Canned().snapshot()

    def lines(target: Target) -> list[str]:
        return [plain(row) for row in progress(target, snapshot, NOW - 60)]

    assert lines(Target("instance", "i3"))[0] == "instance i3  ▽ draining"
    assert "moved 640  aborted 2" in lines(Target("instance", "i3"))[1]
    assert "moved 640  aborted 2" in lines(Target("node", "node-0"))[1]
    assert "waits for 3 requests run; 1 migration is under way" in lines(Target("instance", "i3"))
    assert any("cmpl-5" in text and "copying" in text for text in lines(Target("instance", "i3")))
    assert lines(Target("instance", "i99")) == ["instance i99  ✔ gone"]
    left = sum(item.running + item.waiting for item in snapshot.instances)
    assert lines(Target("node", "node-0"))[1].startswith(f"requests left {left}")


def test_drains_of_several_targets_are_summed_up() -> None:
    snapshot = Canned().snapshot()
    safe = snapshot.instances[3].model_copy(update={"safe_to_remove": True})
    snapshot = snapshot.model_copy(update={"instances": (*snapshot.instances[:3], safe)})
    targets = [Target("instance", name) for name in ("i0", "i3", "i99")]
    assert plain(so_far(targets, snapshot)) == "2 of 3 safe to remove"


def test_requests_are_sorted_by_importance_and_by_the_instances_number() -> None:
    request = (Canned().snapshot().requests or ())[0]
    classes = (*CLASSES, PriorityClass(name="batch", engine_priority=20, headroom_tokens=0))
    found = [
        request.model_copy(update={"id": f"{place}/{name}", "priority": name, "instance": place})
        for place, name in (("i10", "batch"), ("i2", "normal"), ("i1", "high"))
    ]

    def order(letter: str) -> list[str]:
        return [row.id for row in arrange(found, columns(classes), Sort(letter), "", str)]

    assert order("P") == ["i1/high", "i2/normal", "i10/batch"]
    assert order("N") == ["i1/high", "i2/normal", "i10/batch"]


def test_a_classs_waiting_requests_are_also_those_that_api_servers_hold() -> None:
    snapshot = Canned().snapshot()
    counts = snapshot.cluster.counts.model_copy(update={"requests_held": {"normal": 7}})
    cluster = snapshot.cluster.model_copy(update={"counts": counts})
    loads = [load for item in snapshot.instances for load in item.priorities if load.name == "normal"]
    running, waiting = sum(load.running for load in loads), sum(load.waiting for load in loads)
    held = plain(totals(snapshot.model_copy(update={"cluster": cluster}), Series(), 80)[3])
    assert f"normal {running}/{waiting + 7} " in held


def test_a_drain_without_another_instance_is_warned_of() -> None:
    snapshot = Canned(1).snapshot()
    text = " ".join(questions.drain([Target("instance", "i0")], snapshot))
    assert "nowhere to go" in text
    assert "nowhere" not in " ".join(questions.drain([Target("instance", "i0")], Canned(4).snapshot()))


def test_paths_keep_slashes_of_ids_encoded() -> None:
    command = migrate("cmpl/1 a", "i2")
    assert command.path == "/v1/requests/cmpl%2F1%20a/migrate"
    assert set_priority("r", "high").body == {"priority": "high"}


def test_history_samples_once_a_second_and_forgets_who_is_gone() -> None:
    canned, history = Canned(), History()
    for ago in (3.0, 2.9, 2.0, 1.0):
        history.add(canned.snapshot(NOW - ago))
    assert len(history.of("i0").kv_share) == len(history.cluster.tokens_per_s) == 3
    last = canned.snapshot(NOW)
    history.add(last.model_copy(update={"instances": last.instances[1:]}))
    assert len(history.of("i0").kv_share) == 0
    assert math.isclose(history.of("i1").kv_share[-1], last.instances[1].kv_blocks_used / 2000)


def test_the_store_takes_each_event_once_the_newest_first() -> None:
    store = Store()
    first, second = (Event(seq=number, time=NOW, kind="a") for number in (1, 2))
    store.add_events((first,))
    store.add_events((first, second))
    assert [event.seq for event in store.events] == [2, 1]
    store.forget_events()
    assert store.last_seq is None
