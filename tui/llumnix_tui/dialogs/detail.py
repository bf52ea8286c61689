"""Texts on top of a screen: all of one thing, and the keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from llumnix_tui.render.text import MUTED, STRONG, Line, content, line


class DetailDialog(ModalScreen[None]):
    """A text to read; any of the usual keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q,question_mark", "dismiss", "close"),
        Binding("j", "scroll('down')", "down", show=False),
        Binding("k", "scroll('up')", "up", show=False),
        Binding("g", "scroll('home')", "top", show=False),
        Binding("G", "scroll('end')", "end", show=False),
    ]

    def __init__(self, title: str, lines: Sequence[Line]) -> None:
        super().__init__()
        self._lines = [line(title, STRONG), (), *lines]

    def compose(self) -> ComposeResult:
        """Lay out the text."""
        with Vertical(classes="dialog wide"):
            with VerticalScroll(id="text"):
                yield Static(content(self._lines))
            yield Static(content((line("Esc closes", MUTED),)))

    def action_scroll(self, where: str) -> None:
        """Scroll the text."""
        text = self.query_one("#text", VerticalScroll)
        getattr(text, f"scroll_{where}")(animate=False)
