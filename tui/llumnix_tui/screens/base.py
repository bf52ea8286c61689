"""What every screen shares: header line, filter, footer, and what a terminal that is too small is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import Screen
from textual.widgets import Input, Static

from llumnix_tui.client import Interest
from llumnix_tui.render.keys import Key, footer
from llumnix_tui.render.overview import header_line
from llumnix_tui.render.text import Line, content
from llumnix_tui.snapshot import Snapshot
from llumnix_tui.table import VirtualTable

if TYPE_CHECKING:
    from llumnix_tui.app import LlumnixApp

MIN_WIDTH, MIN_HEIGHT = 80, 24


class DataScreen(Screen[None], inherit_bindings=False):
    """A screen over the store; `show_snapshot` is called with each new snapshot while it is visible."""

    INTEREST: ClassVar[Interest] = Interest()
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "app.help", "help", key_display="?"),
        Binding("slash", "filter", "filter", key_display="/", priority=True),
        Binding("enter", "apply_filter", show=False, priority=True),
        Binding("escape", "back", "back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._texts: dict[str, tuple[Line, ...]] = {}
        # Whether the widgets are there: data may come before them.
        self._ready = False

    @property
    def llumnix(self) -> LlumnixApp:
        """The app, as its own type."""
        return cast("LlumnixApp", self.app)

    @property
    def interest(self) -> Interest:
        """What this screen needs beyond the cluster's own data."""
        return self.INTEREST

    def body(self) -> ComposeResult:
        """Yield the widgets between header and footer."""
        raise NotImplementedError

    def show_snapshot(self, snapshot: Snapshot) -> None:
        """Show new data."""
        raise NotImplementedError

    def table(self) -> VirtualTable[object] | None:
        """The table that the filter and the actions are about."""
        found = self.query(VirtualTable)
        return found.first() if found else None

    def compose(self) -> ComposeResult:
        """Lay out header, body, filter and footer."""
        yield Static(id="header")
        with Vertical(id="body"):
            yield from self.body()
        yield Input(placeholder="filter: every word must occur", id="filter", compact=True)
        yield Static(id="footer")
        yield Static(id="too-small")

    def on_mount(self) -> None:
        """Start with the table."""
        self._ready = True
        self.query_one("#filter").display = False
        self.bindings_updated_signal.subscribe(self, lambda _: self._show_keys())
        # Not `focus`, which takes effect after the keys that have come by now.
        self.set_focus(self.table())
        self.refresh_data()

    def on_screen_resume(self) -> None:
        """Fetch what this screen needs, and show what is there."""
        self.llumnix.source.interest = self.interest
        self.llumnix.source.wake()
        self.refresh_data()

    def on_resize(self, event: events.Resize) -> None:
        """Say so where the terminal is too small."""
        width, height = event.size
        small = width < MIN_WIDTH or height < MIN_HEIGHT
        self.set_class(small, "-too-small")
        self.query_one("#too-small", Static).update(
            f"llumnix-tui needs {MIN_WIDTH}x{MIN_HEIGHT} characters; this terminal has {width}x{height}."
        )
        self._show_keys()
        self.refresh_data()

    def keys(self, *, shown: bool) -> list[Key]:
        """Return the bindings in force, or of them those that the footer shows."""
        return [
            Key(
                self.app.get_key_display(active.binding),
                active.binding.description,
                active.binding.group.description if active.binding.group else "",
            )
            # What moves the cursor comes last.
            for active in sorted(self.active_bindings.values(), key=lambda active: not active.binding.show)
            if active.enabled and (active.binding.show or not shown) and not active.binding.system
        ]

    def _show_keys(self) -> None:
        self.set_text("#footer", (footer(self.keys(shown=True), self.size.width - 2),))

    def refresh_data(self) -> None:
        """Show the store as it is now."""
        # Data may also come when the app ends and the widgets are gone already.
        if not self._ready or not self.query(VirtualTable):
            return
        self.refresh_header()
        store = self.llumnix.store
        self.set_class(store.stale, "-stale")
        if store.snapshot is not None:
            self.show_snapshot(store.snapshot)

    def refresh_header(self) -> None:
        """Show the connection and the age of the data."""
        app = self.llumnix
        styled = header_line(
            app.store, app.source.name, app.clock(), paused=app.paused, read_only=app.read_only
        )
        self.set_text("#header", (styled,))

    def set_text(self, selector: str, lines: Sequence[Line]) -> None:
        """Show lines in a Static, unless it shows them already."""
        before = self._texts.get(selector)
        if before != (lines := tuple(lines)):
            self._texts[selector] = lines
            # No line wraps: as many lines as before need no new layout, which costs more than the text.
            layout = before is None or len(lines) != len(before)
            for widget in self.query(selector).results(Static):
                widget.update(content(lines), layout=layout)

    # ---- filter -----------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave a slash in the filter to the filter, and Enter in the table to the table."""
        if action in ("filter", "apply_filter"):
            return isinstance(self.focused, Input) == (action == "apply_filter")
        return super().check_action(action, parameters)

    def action_filter(self) -> None:
        """Open the filter, before the next key."""
        box = self.query_one("#filter", Input)
        box.display = True
        self.set_focus(box)

    @on(Input.Changed, "#filter")
    def _on_filter_changed(self, event: Input.Changed) -> None:
        if (table := self.table()) is not None:
            table.set_filter(event.value)
            self.refresh_data()

    def action_apply_filter(self) -> None:
        """Go from the filter to what it left, before the next key."""
        self.set_focus(self.table())

    def drop_filter(self) -> None:
        """Show all rows again, and no filter."""
        box = self.query_one("#filter", Input)
        if box.display:
            box.value = ""
            box.display = False
            # At once: the change of the box is told later, perhaps when another table is shown.
            if (table := self.table()) is not None:
                table.set_filter("")
            self.refresh_data()

    def action_back(self) -> None:
        """Drop the filter, then the marks, then leave the screen."""
        box, table = self.query_one("#filter", Input), self.table()
        if box.display:
            self.drop_filter()
            self.set_focus(table)
        elif table is not None and table.marked:
            table.clear_marks()
        else:
            self.leave()

    def leave(self) -> None:
        """Return to the screen before, if there is one."""
