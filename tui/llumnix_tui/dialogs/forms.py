"""Dialogs that ask for more than yes or no: a choice, a count, the options of a drain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Checkbox, Input, Label, OptionList
from textual.widgets.option_list import Option

from llumnix_tui.commands import OnTimeout
from llumnix_tui.dialogs.base import Dialog
from llumnix_tui.render.text import Line, content


class ChoiceDialog(Dialog[str]):
    """One of several options; j and k move the choice wherever the focus is."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "choose(1)", "next option", show=False),
        Binding("k,up", "choose(-1)", "previous option", show=False),
    ]

    def __init__(
        self, title: str, consequence: Sequence[str], verb: str, options: Sequence[tuple[str, Line]]
    ) -> None:
        """`options` are ids with what is shown."""
        super().__init__(title, consequence, verb)
        self._options = options

    def form(self) -> ComposeResult:
        """Yield the options; the buttons alone take the focus, so that Enter never chooses by accident."""
        options = OptionList(
            *(Option(content((shown,)), id=name) for name, shown in self._options), compact=True
        )
        options.can_focus = False
        options.highlighted = 0
        yield options

    def action_choose(self, by: int) -> None:
        """Move the choice."""
        options = self.query_one(OptionList)
        options.highlighted = ((options.highlighted or 0) + by) % len(self._options)

    def answer(self) -> str:
        """Return the id of the choice."""
        return self._options[self.query_one(OptionList).highlighted or 0][0]


class CountDialog(Dialog[int]):
    """How many instances to add."""

    def form(self) -> ComposeResult:
        """Yield the number."""
        yield Label("How many")
        yield Input("1", type="integer", id="count", compact=True)

    def answer(self) -> int:
        """Return the number."""
        text = self.query_one("#count", Input).value.strip()
        if not text.isdigit() or not 1 <= int(text) <= 1000:
            raise ValueError(f"count: {text or 'nothing'!r}, expected a number from 1 to 1000")
        return int(text)


class Tick(Checkbox):
    """A checkbox that is empty when it is off, rather than of another colour."""

    BUTTON_INNER = " "

    def watch_value(self) -> None:
        """Show a cross only when it is on."""
        self.BUTTON_INNER = "X" if self.value else " "
        super().watch_value()


@dataclass(frozen=True)
class DrainChoice:
    """How long a drain may take (None: without limit), and what then happens to what is left."""

    timeout_s: float | None
    on_timeout: OnTimeout


class DrainDialog(Dialog[DrainChoice]):
    """The options of a drain."""

    def form(self) -> ComposeResult:
        """Yield timeout and what comes after it."""
        yield Label("Give up after (seconds; empty: never)")
        yield Input("", placeholder="never", id="timeout", compact=True)
        yield Tick("then abort what is left (clients get an error)", id="abort", compact=True)

    def answer(self) -> DrainChoice:
        """Return the options."""
        text = self.query_one("#timeout", Input).value.strip()
        abort = self.query_one("#abort", Checkbox).value
        if not text:
            if abort:
                raise ValueError("timeout: nothing, expected seconds, as requests are to be aborted after it")
            return DrainChoice(None, "leave")
        try:
            timeout_s = float(text)
        except ValueError:
            timeout_s = 0.0
        if not 0 < timeout_s <= 7 * 86400:
            raise ValueError(f"timeout: {text!r}, expected seconds above 0 and at most a week, or nothing")
        return DrainChoice(timeout_s, "abort" if abort else "leave")
