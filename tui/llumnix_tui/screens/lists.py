"""A screen that is one table: a heading above, what the current row is about below, Enter for all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.widgets import Static

from llumnix_tui.dialogs.detail import DetailDialog
from llumnix_tui.render.columns import Column
from llumnix_tui.render.text import Line, joined, labelled
from llumnix_tui.screens.base import DataScreen
from llumnix_tui.snapshot import Snapshot
from llumnix_tui.table import VirtualTable


class ListScreen(DataScreen):
    """Subclasses name rows, columns and texts; `rows` returns None where the snapshot does not tell."""

    def make_table(self) -> VirtualTable[Any]:
        """Return the table."""
        raise NotImplementedError

    def rows(self, snapshot: Snapshot) -> Sequence[Any] | None:
        """Return the table's rows."""
        raise NotImplementedError

    def columns(self, snapshot: Snapshot) -> Sequence[Column[Any]]:
        """Return the table's columns."""
        raise NotImplementedError

    def heading(self, snapshot: Snapshot) -> Sequence[Line]:
        """Return the lines above the table."""
        raise NotImplementedError

    def about(self, row: Any) -> Sequence[Line]:
        """Return the lines below the table, about the row under the cursor."""
        raise NotImplementedError

    def open(self, row: Any) -> None:
        """Show all of a row."""
        raise NotImplementedError

    def body(self) -> ComposeResult:
        """Yield heading, table and what the current row is about."""
        yield Static(id="heading", classes="panel")
        self._table = self.make_table()
        yield self._table
        yield Static(id="about", classes="panel")

    def table(self) -> VirtualTable[Any]:
        """The table."""
        return self._table

    def show_snapshot(self, snapshot: Snapshot) -> None:
        """Show heading and rows; rows that the snapshot does not tell stay as they were."""
        rows = self.rows(snapshot)
        if rows is not None:
            self.table().show_rows(rows, self.columns(snapshot))
        self._show_heading()
        self._show_about()

    def count_line(self, noun: str) -> Line:
        """Return how many rows there are, pass the filter, and are marked."""
        table = self.table()
        shown = f"{len(table.rows)} of {table.num_all}" if table.wanted else str(table.num_all)
        return joined(
            (
                labelled(noun, shown),
                labelled("filter", table.wanted) if table.wanted else (),
                labelled("selected", str(len(table.marked))) if table.marked else (),
            )
        )

    def show_detail(self, title: str, lines: Sequence[Line]) -> None:
        """Show a text on top."""
        self.app.push_screen(DetailDialog(title, lines))

    @on(VirtualTable.Marked)
    def _show_heading(self) -> None:
        snapshot = self.llumnix.store.snapshot
        if snapshot is not None:
            self.set_text("#heading", self.heading(snapshot))

    @on(VirtualTable.Moved)
    def _show_about(self) -> None:
        row = self.table().current
        self.set_text("#about", () if row is None else self.about(row))

    @on(VirtualTable.Opened)
    def _open(self) -> None:
        row = self.table().current
        if row is not None:
            self.open(row)
