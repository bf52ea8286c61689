"""Screen 3: migrations under way and ended, their totals, and who moves to whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Static

from llumnix.admin.schema import Migration
from llumnix_tui.client import Interest
from llumnix_tui.render import migrations
from llumnix_tui.render.columns import Column
from llumnix_tui.render.text import Line, joined
from llumnix_tui.screens.lists import ListScreen
from llumnix_tui.snapshot import Snapshot
from llumnix_tui.table import VirtualTable

# From this height on the matrix is there without being asked for.
TALL = 36
MATRIX_HEIGHT = 9


class MigrationsScreen(ListScreen):
    """Migrations."""

    INTEREST: ClassVar[Interest] = Interest(migration_totals=True)
    BINDINGS: ClassVar[list[BindingType]] = [Binding("v", "matrix", "matrix")]

    def __init__(self) -> None:
        super().__init__()
        self._matrix: bool | None = None

    def body(self) -> ComposeResult:
        """Yield the list, and the matrix below."""
        yield from super().body()
        yield Static(id="matrix", classes="panel")

    def make_table(self) -> VirtualTable[Migration]:
        """Return the table of migrations."""
        return VirtualTable(
            migrations.row_key, migrations.haystack, empty="no migrations yet", newest_first=True
        )

    def rows(self, snapshot: Snapshot) -> Sequence[Migration]:
        """Return those under way, then those that ended."""
        return migrations.ordered(snapshot.migrations)

    def columns(self, snapshot: Snapshot) -> Sequence[Column[Migration]]:
        """Return the columns."""
        return migrations.COLUMNS

    def heading(self, snapshot: Snapshot) -> Sequence[Line]:
        """Return totals, in all and per minute."""
        moves = self.llumnix.store.history.moves
        first, *rest = migrations.summary(snapshot, moves, self.size.width - 2)
        return (joined((self.count_line("listed"), first)), *rest)

    def about(self, row: Migration) -> Sequence[Line]:
        """Return why it was begun, and why it was aborted."""
        return (migrations.why_line(row),)

    def open(self, row: Migration) -> None:
        """Show all of a migration."""
        self.show_detail(f"Migration {row.id}", migrations.detail(row))

    def show_snapshot(self, snapshot: Snapshot) -> None:
        """Show the list, and the matrix where there is room or it was asked for."""
        super().show_snapshot(snapshot)
        wanted = self.size.height >= TALL if self._matrix is None else self._matrix
        self.query_one("#matrix").display = wanted
        if wanted and snapshot.migration_totals is not None:
            lines = migrations.matrix(snapshot.migration_totals, self.size.width - 2, MATRIX_HEIGHT)
            self.set_text("#matrix", lines)

    def action_matrix(self) -> None:
        """Show or hide the matrix."""
        self._matrix = not self.query_one("#matrix").display
        self.refresh_data()
