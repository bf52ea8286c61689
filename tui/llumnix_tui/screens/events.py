"""Screen 4: the journal, the newest entry first."""

from __future__ import annotations

from collections.abc import Sequence

from llumnix.admin.schema import Event
from llumnix_tui.render import events
from llumnix_tui.render.columns import Column
from llumnix_tui.render.text import Line, line
from llumnix_tui.screens.lists import ListScreen
from llumnix_tui.snapshot import Snapshot
from llumnix_tui.table import VirtualTable


class EventsScreen(ListScreen):
    """The journal."""

    def make_table(self) -> VirtualTable[Event]:
        """Return the table of events."""
        return VirtualTable(events.row_key, events.haystack, empty="no events yet", newest_first=True)

    def rows(self, snapshot: Snapshot) -> Sequence[Event]:
        """Return the events that the store holds."""
        return list(self.llumnix.store.events)

    def columns(self, snapshot: Snapshot) -> Sequence[Column[Event]]:
        """Return the columns."""
        return events.COLUMNS

    def heading(self, snapshot: Snapshot) -> Sequence[Line]:
        """Return how many there are."""
        return (self.count_line("events"),)

    def about(self, row: Event) -> Sequence[Line]:
        """Return the whole message."""
        return (line(" ".join(row.message.split()) or "–"),)

    def open(self, row: Event) -> None:
        """Show an event with its data."""
        self.show_detail(f"Event {row.seq}", events.detail(row))
