"""How a drain goes, until it is safe to remove what is drained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from llumnix_tui.commands import Target
from llumnix_tui.render.drain import progress, so_far
from llumnix_tui.render.text import MUTED, content, line
from llumnix_tui.store import Store


class DrainProgress(ModalScreen[None]):
    """Follows drains; closing it changes nothing. Arrows, page keys, Home and End scroll it too."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "close"),
        Binding("j", "scroll('down')", "down", show=False),
        Binding("k", "scroll('up')", "up", show=False),
        Binding("g", "scroll('home')", "top", show=False),
        Binding("G", "scroll('end')", "end", show=False),
    ]

    def __init__(self, targets: Sequence[Target], store: Store, began_at: float) -> None:
        super().__init__()
        self._targets, self._store, self._began_at = targets, store, began_at

    def compose(self) -> ComposeResult:
        """Lay out the text."""
        with Vertical(classes="dialog wide"):
            yield Static(id="sum")
            with VerticalScroll(id="text"):
                yield Static(id="progress")
            note = "Esc closes; the drain goes on. Undo it with u (uncordon). j/k scroll."
            yield Static(content((line(note, MUTED),)))

    def on_mount(self) -> None:
        """Show what is known already."""
        self.refresh_data()

    def refresh_data(self) -> None:
        """Show how far each target is."""
        snapshot = self._store.snapshot
        if snapshot is None:
            return
        lines = [row for target in self._targets for row in progress(target, snapshot, self._began_at)]
        for text in self.query("#progress").results(Static):
            text.update(content(lines))
        for text in self.query("#sum").results(Static):
            text.update(content((so_far(self._targets, snapshot),)))

    def action_scroll(self, where: str) -> None:
        """Scroll the text."""
        text = self.query_one("#text", VerticalScroll)
        getattr(text, f"scroll_{where}")(animate=False)
