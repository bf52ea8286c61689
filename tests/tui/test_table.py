"""The virtual table: the cursor stays on its row, and of many rows only what changed is painted."""

from typing import Any

import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.geometry import Region

from llumnix_tui.render.columns import Column
from llumnix_tui.render.text import line
from llumnix_tui.table import VirtualTable
from tests.tui.canned import Canned, CannedSource
from tests.tui.conftest import running, settled
from tests.tui.shown import shown

Row = tuple[str, int]
COLUMNS: list[Column[Row]] = [
    Column("NAME", 8, lambda row: line(row[0]), lambda row: row[0], "N"),
    Column("LOAD", 6, lambda row: line(str(row[1])), lambda row: row[1], "L", right=True),
]


class TableApp(App[None]):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = options

    def compose(self) -> ComposeResult:
        yield VirtualTable[Row](lambda row: row[0], lambda row: row[0], **self._options)

    @property
    def table(self) -> VirtualTable[Row]:
        return self.query_one(VirtualTable)


def rows(count: int) -> list[Row]:
    return [(f"r{number}", number) for number in range(count)]


async def test_the_cursor_stays_on_its_row() -> None:
    app = TableApp()
    async with app.run_test(size=(30, 10)) as pilot:
        app.table.focus()
        app.table.show_rows(rows(50), COLUMNS)
        await pilot.press("j", "j", "j")
        assert app.table.current == ("r3", 3)
        app.table.show_rows([("new", 1), *rows(50)], COLUMNS)
        await pilot.pause()
        assert app.table.current == ("r3", 3)
        assert "▸ r3" in shown(app)
        app.table.show_rows([row for row in rows(50) if row[0] != "r3"], COLUMNS)
        await pilot.pause()
        assert app.table.current == ("r5", 5)  # in its place
        app.table.show_rows([], COLUMNS)
        await pilot.pause()
        assert app.table.current is None
        assert "nothing here" in shown(app)


async def test_of_a_long_list_with_the_newest_first_new_rows_are_seen_until_the_cursor_leaves_the_top() -> (
    None
):
    app = TableApp(newest_first=True)
    async with app.run_test(size=(30, 10)) as pilot:
        app.table.focus()
        app.table.show_rows(rows(50), COLUMNS)
        await pilot.pause()
        app.table.show_rows([("new", 1), *rows(50)], COLUMNS)
        await pilot.pause()
        assert app.table.current == ("new", 1) and "▸ new" in shown(app)
        await pilot.press("j")
        app.table.show_rows([("newer", 1), ("new", 1), *rows(50)], COLUMNS)
        await pilot.pause()
        assert app.table.current == ("r0", 0) and "▸ r0" in shown(app)


async def test_keys_move_sort_and_mark() -> None:
    app = TableApp()
    async with app.run_test(size=(30, 10)) as pilot:
        table = app.table
        table.focus()
        table.show_rows(rows(10_000), COLUMNS)
        await pilot.press("G")
        assert table.current == ("r9999", 9999)
        assert "▸ r9999" in shown(app)
        await pilot.press("pageup", "k", "g", "L", "L")
        assert table.rows[0] == ("r9999", 9999)
        assert table.current == ("r0", 0)
        await pilot.press("g", "space", "space")
        assert [row[0] for row in table.chosen] == ["r9999", "r9998"]
        table.set_filter("r77")
        await pilot.pause()
        assert all("r77" in row[0] for row in table.rows)
        table.clear_marks()
        assert table.chosen == [table.current]


async def test_marks_go_with_their_rows_and_hidden_ones_do_not_pass_to_the_cursors_row() -> None:
    app = TableApp()
    async with app.run_test(size=(30, 10)) as pilot:
        table = app.table
        table.focus()
        table.show_rows(rows(5), COLUMNS)
        await pilot.press("space", "space")
        table.set_filter("r4")
        assert table.chosen == []
        table.set_filter("")
        table.show_rows(rows(5)[1:], COLUMNS)
        assert table.marked == {"r1"}
        table.show_rows(rows(5)[2:], COLUMNS)
        assert table.marked == set()
        assert table.chosen == [table.current]


async def test_no_text_commands_the_terminal() -> None:
    app = TableApp()
    async with app.run_test(size=(30, 10)) as pilot:
        app.table.show_rows([("\x1b[31ma\x1b]0;b\x07", 1)], COLUMNS)
        await pilot.pause()
        assert "\x1b" not in shown(app)
        assert "a]0" in shown(app)


async def test_only_changed_cells_are_painted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    app = TableApp()
    async with app.run_test(size=(30, 10)) as pilot:
        table = app.table
        table.show_rows(rows(50), COLUMNS)
        await pilot.pause()
        painted: list[Region | None] = []

        def refresh(*regions: Region, **options: Any) -> VirtualTable[Row]:
            painted.extend(regions or (None,))
            return table

        monkeypatch.setattr(table, "refresh", refresh)
        changed = rows(50)
        changed[2] = ("r2", 777)
        changed[40] = ("r40", 1)  # not visible
        table.show_rows(changed, COLUMNS)
        assert painted == [Region(11, 3, 6, 1)]


async def test_filter_sort_and_escape_on_the_requests_screen() -> None:
    async with running(CannedSource(Canned(num_requests=60).snapshot())) as pilot:
        await pilot.press("2", "slash", *"cmpl-1", "enter")
        assert "requests 11 of 60  filter cmpl-1" in shown(pilot.app)
        assert "cmpl-2 " not in shown(pilot.app)
        await pilot.press("B", "B", "g")
        table = pilot.app.screen.query_one(VirtualTable)
        blocks = [row.kv_blocks for row in table.rows]
        assert blocks == sorted(blocks, reverse=True)
        assert "BLOC…▼" in shown(pilot.app)
        await pilot.press("escape")
        assert "requests 60" in shown(pilot.app)


async def test_another_list_of_an_instance_drops_the_filter_of_the_one_before() -> None:
    async with running(CannedSource(Canned(num_requests=60).snapshot())) as pilot:
        await pilot.press("enter", "slash", *"cmpl-1", "enter")
        table = pilot.app.screen.query_one("#requests", VirtualTable)
        assert 0 < len(table.rows) < table.num_all
        await pilot.press("tab")
        await settled(pilot)
        assert [box.wanted for box in pilot.app.screen.query(VirtualTable)] == ["", "", ""]
        assert len(table.rows) == table.num_all
        await pilot.press("escape")  # there is no filter to drop: it leaves the screen
        assert "▸ i0" in shown(pilot.app)


async def test_keys_typed_faster_than_screens_change_go_where_they_are_meant() -> None:
    async with running(CannedSource(Canned(num_requests=60).snapshot())) as pilot:
        keys = ["2", "slash", *"cmpl", "minus", *"12", "enter", "r"]
        letters = {"slash": "/", "minus": "-", "enter": "\r"}
        for key in keys:  # all at once: the pilot would wait for each
            pilot.app.post_message(events.Key(key, letters.get(key, key)))
        await settled(pilot)
        assert "requests 1 of 60  filter cmpl-12" in shown(pilot.app)
        assert "Set the priority of cmpl-12?" in shown(pilot.app)
