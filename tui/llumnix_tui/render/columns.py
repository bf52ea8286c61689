"""Columns of a table, and its rows in order: filtered, sorted, and fitted to a width."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

from llumnix_tui.render.text import ACCENT, PLAIN, Line, Span, fitted

Row = TypeVar("Row")
SortValue = float | str | None
# Cells between two columns.
GAP = 1


@lru_cache(maxsize=4096)
def natural(text: str) -> str:
    """Return a key by which i2 stands before i10."""
    return "".join(part.zfill(9) if part.isdigit() else part for part in re.split(r"([0-9]+)", text))


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column; `letter` sorts by it with Shift, `min_width` hides it in narrower tables."""

    title: str
    width: int
    cell: Callable[[Row], Line]
    sort: Callable[[Row], SortValue] | None = None
    letter: str = ""
    right: bool = False
    min_width: int = 0
    # Takes what width is left over.
    stretches: bool = False


# Columns with their widths.
Layout = Sequence[tuple[Column[Row], int]]


@dataclass(frozen=True)
class Sort:
    """By which column, by its letter, and which way."""

    letter: str
    descending: bool = False

    def pressed(self, letter: str) -> "Sort":
        """Return the order after Shift+letter: the other way if it is this column already."""
        return Sort(letter, not self.descending) if letter == self.letter else Sort(letter)


def fit_columns(columns: Sequence[Column[Row]], width: int) -> list[tuple[Column[Row], int]]:
    """Return the columns that a table of this width shows, with their widths."""
    shown = [column for column in columns if column.min_width <= width]
    spare = width - sum(column.width for column in shown) - GAP * max(len(shown) - 1, 0)
    stretching = sum(column.stretches for column in shown)
    extra = max(spare, 0) // stretching if stretching else 0
    return [(column, column.width + (extra if column.stretches else 0)) for column in shown]


def header_line(layout: Layout[Row], sort: Sort | None) -> Line:
    """Return the titles: the letter that sorts is underlined, the column that is sorted by has an arrow."""
    spans: list[Span] = []
    for column, width in layout:
        arrow = ""
        if sort is not None and column.letter and column.letter == sort.letter:
            arrow = "▼" if sort.descending else "▲"
        before, letter, after = (
            column.title.partition(column.letter) if column.letter else (column.title, "", "")
        )
        title = ((before, PLAIN), (letter, "underline"), (after, PLAIN))
        spans += [*fitted(title, width - len(arrow), right=column.right), (arrow, ACCENT), (" " * GAP, PLAIN)]
    return tuple(spans)


def row_line(layout: Layout[Row], cells: Sequence[Line]) -> Line:
    """Return a row's cells, each as wide as its column."""
    spans: list[Span] = []
    for (column, width), cell in zip(layout, cells, strict=True):
        spans += [*fitted(cell, width, right=column.right), (" " * GAP, PLAIN)]
    return tuple(spans)


def arrange(
    rows: Iterable[Row],
    columns: Sequence[Column[Row]],
    sort: Sort | None,
    wanted: str,
    haystack: Callable[[Row], str],
) -> list[Row]:
    """Return the rows that hold every word of `wanted`, sorted; unknown values come last either way."""
    words = wanted.lower().split()
    chosen = (
        [row for row in rows if all(word in haystack(row).lower() for word in words)] if words else list(rows)
    )
    value = next((c.sort for c in columns if sort is not None and c.letter == sort.letter), None)
    if sort is None or value is None:
        return chosen
    unknown = [row for row in chosen if value(row) is None]
    known = [row for row in chosen if value(row) is not None] if unknown else chosen
    # Each value is that of a known row, so that all of them compare.
    return sorted(known, key=value, reverse=sort.descending) + unknown  # type: ignore[arg-type]
