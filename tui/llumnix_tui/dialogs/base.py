"""A dialog with a form and two buttons; Esc and Cancel return None."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from llumnix_tui.render.text import BAD, STRONG, Line, content, line

Answer = TypeVar("Answer")


class Dialog(ModalScreen[Answer | None], Generic[Answer]):
    """Asks once; a wrong input is explained in the dialog and sends nothing."""

    AUTO_FOCUS = "#cancel"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "cancel"),
        Binding("left", "app.focus_previous", "previous", show=False),
        Binding("right", "app.focus_next", "next", show=False),
    ]

    def __init__(self, title: str, consequence: Sequence[str], verb: str) -> None:
        """`verb` is on the button that confirms."""
        super().__init__()
        self._title, self._consequence, self._verb = title, consequence, verb

    def form(self) -> ComposeResult:
        """Yield the inputs, if any."""
        yield from ()

    def answer(self) -> Answer:
        """Return what was chosen; ValueError says what is wrong with it."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        """Lay out title, consequence, form and buttons."""
        lines: list[Line] = [line(self._title, STRONG), *(line(text) for text in self._consequence)]
        with Vertical(classes="dialog"):
            with VerticalScroll(can_focus=False):
                yield Static(content(lines))
            yield from self.form()
            yield Static(id="wrong")
            with Horizontal(classes="buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield Button(self._verb, id="confirm", variant="warning", compact=True)

    def action_cancel(self) -> None:
        """Leave without doing anything."""
        self.dismiss(None)

    @on(Button.Pressed, "#cancel")
    def _on_cancel(self) -> None:
        self.dismiss(None)

    @on(Button.Pressed, "#confirm")
    @on(Input.Submitted)
    def _on_confirm(self) -> None:
        try:
            chosen = self.answer()
        except ValueError as error:
            self.query_one("#wrong", Static).update(content((line(str(error), BAD),)))
            return
        self.dismiss(chosen)


class ConfirmDialog(Dialog[bool]):
    """Asks whether to go on."""

    def answer(self) -> bool:
        """Return that it shall be."""
        return True
