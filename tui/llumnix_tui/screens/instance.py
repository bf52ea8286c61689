"""One instance: its figures, KV cache over time, and its requests, migrations and log."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import ContentSwitcher, Static

from llumnix.admin.schema import Migration, Request
from llumnix_tui.client import Interest
from llumnix_tui.commands import Target
from llumnix_tui.dialogs.detail import DetailDialog
from llumnix_tui.render import instance, migrations, requests
from llumnix_tui.render.columns import Column
from llumnix_tui.render.text import ACCENT, BAD, MUTED, Line, joined, line
from llumnix_tui.screens.actions import RequestActions, TargetActions
from llumnix_tui.snapshot import Snapshot
from llumnix_tui.table import VirtualTable

VIEWS = ("requests", "migrations", "log")
LogRow = tuple[int, str]
LOG_COLUMNS: tuple[Column[LogRow], ...] = (
    Column("LOG", 0, lambda row: line(row[1].expandtabs()), lambda row: row[0], stretches=True),
)


class InstanceScreen(TargetActions, RequestActions):
    """What there is to know of one instance; Tab goes to the next of its lists."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "next_view(1)", "next list", priority=True),
        Binding("shift+tab", "next_view(-1)", "list before", show=False, priority=True),
    ]

    def __init__(self, instance_id: str) -> None:
        super().__init__()
        self._instance_id = instance_id
        self._view = VIEWS[0]

    @property
    def interest(self) -> Interest:
        """Its requests and its log."""
        return Interest(requests=True, instance=self._instance_id)

    def body(self) -> ComposeResult:
        """Yield figures, chart, and one of the lists."""
        yield Static(id="figures", classes="panel")
        yield Static(id="chart", classes="panel")
        yield Static(id="views", classes="panel")
        with ContentSwitcher(initial=VIEWS[0]):
            yield VirtualTable[Request](
                requests.row_key, requests.haystack, empty="no requests here", id="requests"
            )
            yield VirtualTable[Migration](
                migrations.row_key,
                migrations.haystack,
                empty="no migrations of this instance",
                newest_first=True,
                id="migrations",
            )
            yield VirtualTable[LogRow](
                lambda row: str(row[0]), lambda row: row[1], empty="no lines", id="log"
            )

    def table(self) -> VirtualTable[object]:
        """The list that is shown."""
        return self.query_one(f"#{self._view}", VirtualTable)

    def show_snapshot(self, snapshot: Snapshot) -> None:
        """Show the instance as it is now; one that is gone says so."""
        found, series = snapshot.instance(self._instance_id), self.llumnix.store.history.of(self._instance_id)
        if found is None:
            self.set_text("#figures", (line(f"✖ instance {self._instance_id} is gone", BAD),))
        else:
            self.set_text("#figures", instance.panel(found))
        self.set_text("#chart", instance.over_time(series, self.size.width))
        here = snapshot.requests_on(self._instance_id)
        moves = [
            m for m in migrations.ordered(snapshot.migrations) if self._instance_id in (m.source, m.target)
        ]
        if here is not None:
            columns = requests.columns(snapshot.cluster.priorities)
            self.query_one("#requests", VirtualTable).show_rows(here, columns)
        self.query_one("#migrations", VirtualTable).show_rows(moves, migrations.COLUMNS)
        self.query_one("#log", VirtualTable).show_rows(
            list(enumerate(snapshot.logs.get(self._instance_id, ()))), LOG_COLUMNS
        )
        sizes = {"migrations": len(moves)} | ({} if here is None else {"requests": len(here)})
        self.set_text("#views", (view_line(self._view, sizes),))

    def action_next_view(self, by: int) -> None:
        """Show the next list; a filter is about the one before."""
        self.drop_filter()
        self._view = VIEWS[(VIEWS.index(self._view) + by) % len(VIEWS)]
        self.query_one(ContentSwitcher).current = self._view
        self.set_focus(self.table())
        self.refresh_data()

    @on(VirtualTable.Opened)
    def _open(self) -> None:
        row = self.table().current
        if isinstance(row, Request):
            lines = requests.detail(row, self.llumnix.store.events)
            self.app.push_screen(DetailDialog(f"Request {row.id}", lines))
        elif isinstance(row, Migration):
            self.app.push_screen(DetailDialog(f"Migration {row.id}", migrations.detail(row)))

    def leave(self) -> None:
        """Return to the cluster."""
        self.app.pop_screen()

    def targets(self) -> list[Target]:
        """Return this instance."""
        return [Target("instance", self._instance_id)]

    def chosen_requests(self) -> list[Request]:
        """Return the marked requests, else the one under the cursor, if the requests are shown."""
        if self._view != "requests":
            return []
        return [row for row in self.table().chosen if isinstance(row, Request)]


def view_line(shown: str, sizes: dict[str, int]) -> Line:
    """Return the names of the lists, the shown one marked."""
    parts = []
    for name in VIEWS:
        label = f"{name} {sizes[name]}" if name in sizes else name
        parts.append(line(f"[{label}]", f"bold {ACCENT}") if name == shown else line(f" {label} ", MUTED))
    return joined(parts, " ")
