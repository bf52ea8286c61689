"""Screen 2: every unfinished request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import ClassVar

from llumnix.admin.schema import Request
from llumnix_tui.client import Interest
from llumnix_tui.render import requests
from llumnix_tui.render.columns import Column
from llumnix_tui.render.text import Line, joined, labelled
from llumnix_tui.screens.actions import RequestActions
from llumnix_tui.screens.lists import ListScreen
from llumnix_tui.snapshot import Snapshot
from llumnix_tui.table import VirtualTable


class RequestsScreen(RequestActions, ListScreen):
    """Requests, sortable and filterable."""

    INTEREST: ClassVar[Interest] = Interest(requests=True)

    def make_table(self) -> VirtualTable[Request]:
        """Return the table of requests."""
        return VirtualTable(requests.row_key, requests.haystack, empty="no unfinished requests")

    def rows(self, snapshot: Snapshot) -> Sequence[Request] | None:
        """Return the requests, if all were fetched."""
        return snapshot.requests if snapshot.requests_of is None else None

    def columns(self, snapshot: Snapshot) -> Sequence[Column[Request]]:
        """Return the columns."""
        return requests.columns(snapshot.cluster.priorities)

    def heading(self, snapshot: Snapshot) -> Sequence[Line]:
        """Return how many there are in each state and class."""
        found = self.rows(snapshot)
        if found is None:
            return (labelled("requests", "–"),)
        states, classes = (Counter(map(attrgetter(name), found)) for name in ("state", "priority"))
        counts = (*sorted(states.items()), *sorted(classes.items()))
        return (joined((self.count_line("requests"), *(labelled(name, str(n)) for name, n in counts))),)

    def about(self, row: Request) -> Sequence[Line]:
        """Return why it is where it is."""
        return (labelled(row.id, row.reason or "–", ""),)

    def open(self, row: Request) -> None:
        """Show all of a request."""
        self.show_detail(f"Request {row.id}", requests.detail(row, self.llumnix.store.events))

    def chosen_requests(self) -> list[Request]:
        """Return the marked requests, else the one under the cursor."""
        return self.table().chosen
