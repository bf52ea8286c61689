"""Styled text as plain data: a line is spans of text with a style in Textual's notation and theme tokens."""

import re
from collections.abc import Iterable
from typing import Final

from rich.cells import cell_len, set_cell_size
from textual.content import Content

Span = tuple[str, str]
Line = tuple[Span, ...]

PLAIN: Final = ""
STRONG: Final = "bold"
GOOD: Final = "$text-success"
WARN: Final = "$text-warning"
BAD: Final = "$text-error"
ACCENT: Final = "$text-accent"
MUTED: Final = "$foreground-muted"
DASH: Final = "–"


# Control characters: ids come from clients and logs from anywhere, and none may command the terminal.
CONTROLS: Final = dict.fromkeys((*range(32), *range(127, 160)))
ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def printable(text: str) -> str:
    """Return a text without control characters and escape sequences."""
    return text if text.isprintable() else ESCAPES.sub("", text).translate(CONTROLS)


def line(text: str, style: str = PLAIN) -> Line:
    """Return a line of one span, of none where there is no text."""
    return ((text, style),) if text else ()


def joined(parts: Iterable[Line], between: str = "  ") -> Line:
    """Return one line of several; empty ones are left out."""
    spans: list[Span] = []
    for part in parts:
        if not part:
            continue
        if spans:
            spans.append((between, PLAIN))
        spans.extend(part)
    return tuple(spans)


def labelled(label: str, value: Line | str, style: str = STRONG) -> Line:
    """Return a value after its muted name."""
    return ((f"{label} ", MUTED), *(line(value, style) if isinstance(value, str) else value))


def plain(styled: Line) -> str:
    """Return a line's text."""
    return "".join(text for text, _ in styled)


def width_of(styled: Line) -> int:
    """Return how many terminal cells a line takes."""
    return sum(cell_len(text) for text, _ in styled)


def fitted(styled: Line, width: int, *, right: bool = False) -> Line:
    """Return a line of exactly `width` cells: padded, or cut with an ellipsis."""
    missing = width - width_of(styled)
    if missing >= 0:
        pad: Span = (" " * missing, PLAIN)
        return (pad, *styled) if right else (*styled, pad)
    spans: list[Span] = []
    room = max(width - 1, 0)
    for text, style in styled:
        taken = text if cell_len(text) <= room else set_cell_size(text, room)
        spans.append((taken, style))
        room -= cell_len(taken)
        if room <= 0:
            break
    return (*spans, ("…" if width else "", spans[-1][1]))


def content(lines: Iterable[Line]) -> Content:
    """Return lines as what Textual's widgets show."""
    return Content("\n").join(
        Content.assemble(*((printable(text), style) for text, style in styled)) for styled in lines
    )
