"""A table for ten thousand rows: only visible lines are rendered, only changed cells are painted again."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Generic

from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.style import Style

from llumnix_tui.render.columns import GAP, Column, Row, Sort, arrange, fit_columns, header_line, row_line
from llumnix_tui.render.text import ACCENT, MUTED, PLAIN, Line, printable

MARK_WIDTH = 2


class VirtualTable(ScrollView, Generic[Row], can_focus=True, inherit_bindings=False):
    """Rows with a stable key under a header line; the cursor stays on its row while others come and go."""

    DEFAULT_CSS = """
    VirtualTable {
        height: 1fr; background: $background;
        overflow-x: hidden; scrollbar-gutter: stable; scrollbar-size-vertical: 1;
    }
    VirtualTable > .table--header { background: $panel; color: $foreground; text-style: bold; }
    VirtualTable > .table--cursor { background: $block-cursor-blurred-background; }
    VirtualTable:focus > .table--cursor { background: $primary 50%; text-style: bold; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--header", "table--cursor"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "move(1)", "down", show=False),
        Binding("k,up", "move(-1)", "up", show=False),
        Binding("g,home", "go(0)", "first row", show=False),
        Binding("G,end", "go(-1)", "last row", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "page down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "page up", show=False),
        Binding("space", "mark", "select rows", show=False),
        Binding("enter", "open", "open", show=False),
    ]

    class Opened(Message):
        """Enter was pressed on the current row."""

    class Moved(Message):
        """The cursor is on another row, or on none."""

    class Marked(Message):
        """Rows were marked or unmarked."""

    def __init__(
        self,
        key: Callable[[Row], str],
        haystack: Callable[[Row], str] = str,
        *,
        banner: Callable[[Row], Line | None] = lambda row: None,
        empty: str = "nothing here",
        newest_first: bool = False,
        id: str | None = None,  # noqa: A002 - Textual's name
    ) -> None:
        """`haystack` is what a filter searches; `banner` gives the line of a row that spans all columns.

        `newest_first`: a cursor on the first row stays there and not on its row, so that new ones are seen.
        """
        super().__init__(id=id)
        self._key, self._haystack, self._banner, self._empty = key, haystack, banner, empty
        self._newest_first = newest_first
        self.sort: Sort | None = None
        self.wanted = ""
        self.marked: set[str] = set()
        self._all: Sequence[Row] = ()
        self._rows: list[Row] = []
        self._columns: Sequence[Column[Row]] = ()
        self._layout: list[tuple[Column[Row], int]] = []
        self._cursor = 0
        # The cells of each visible line as they were painted last.
        self._painted: dict[int, tuple[Line, ...]] = {}
        self._styles: dict[str, Style] = {}

    # ---- what it shows ----------------------------------------------------------------------------------

    @property
    def rows(self) -> Sequence[Row]:
        """The rows in the order shown."""
        return self._rows

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return self._rows[self._cursor] if self._rows else None

    @property
    def chosen(self) -> list[Row]:
        """The marked rows that are shown; if none is marked, the one under the cursor."""
        if self.marked:
            return [row for row in self._rows if self._key(row) in self.marked]
        current = self.current
        return [] if current is None else [current]

    @property
    def num_all(self) -> int:
        """Rows without the filter."""
        return len(self._all)

    def show_rows(self, rows: Sequence[Row], columns: Sequence[Column[Row]]) -> None:
        """Replace the rows; cursor, marks and scroll position stay with their rows."""
        self._all, self._columns = rows, columns
        if self.marked and (gone := self.marked.difference(map(self._key, rows))):
            self.marked -= gone
            self.post_message(self.Marked())
        layout = fit_columns(columns, self._inner_width)
        same_layout = [(c.title, w) for c, w in layout] == [(c.title, w) for c, w in self._layout]
        self._layout = layout
        self._arrange()
        if same_layout:
            self._repaint_changed()
        else:
            self.refresh()

    def set_filter(self, wanted: str) -> None:
        """Show only rows that hold every word of `wanted`."""
        self.wanted = wanted
        self._arrange()
        self.refresh()

    def clear_marks(self) -> None:
        """Unmark every row."""
        if self.marked:
            self.marked.clear()
            self.refresh()
            self.post_message(self.Marked())

    def _arrange(self) -> None:
        before = self.current
        kept = None if before is None else self._key(before)
        self._rows = arrange(self._all, self._columns, self.sort, self.wanted, self._haystack)
        if kept is not None and not (self._newest_first and self._cursor == 0):
            at = next((i for i, key in enumerate(map(self._key, self._rows)) if key == kept), None)
            offset = self._cursor - self.scroll_offset.y
            moved = at is not None and at != self._cursor
            self._cursor = min(self._cursor, max(len(self._rows) - 1, 0)) if at is None else at
            if moved:
                # The cursor's row keeps its place on the screen.
                self.scroll_to(y=self._cursor - offset, animate=False, immediate=True)
                self.call_after_refresh(self._reveal)
        self.virtual_size = Size(self._inner_width + MARK_WIDTH, len(self._rows) + 1)
        after = self.current
        if (None if after is None else self._key(after)) != kept:
            self.post_message(self.Moved())

    # ---- keys -------------------------------------------------------------------------------------------

    def on_key(self, event: events.Key) -> None:
        """Sort by the column of a capital letter."""
        letter = event.character or ""
        if any(letter and letter == column.letter for column in self._columns):
            self.sort = Sort(letter) if self.sort is None else self.sort.pressed(letter)
            self._arrange()
            self.refresh()
            event.stop()
            event.prevent_default()

    def action_move(self, by: int) -> None:
        """Move the cursor by rows."""
        self._place(self._cursor + by)

    def action_go(self, to: int) -> None:
        """Move the cursor to a row; -1 is the last."""
        self._place(len(self._rows) - 1 if to < 0 else to)

    def action_page(self, pages: int) -> None:
        """Move the cursor by what is visible."""
        self._place(self._cursor + pages * max(self.size.height - 2, 1))

    def action_mark(self) -> None:
        """Mark or unmark the row, and go to the next."""
        current = self.current
        if current is not None:
            self.marked ^= {self._key(current)}
            self.refresh_row(self._cursor)
            self.post_message(self.Marked())
            self.action_move(1)

    def action_open(self) -> None:
        """Open the row."""
        if self.current is not None:
            self.post_message(self.Opened())

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the row that was clicked."""
        if event.y >= 1:
            self._place(self.scroll_offset.y + event.y - 1)

    def _place(self, at: int) -> None:
        at = max(0, min(at, len(self._rows) - 1))
        if at == self._cursor or not self._rows:
            return
        self.refresh_row(self._cursor)
        self._cursor = at
        self.refresh_row(at)
        self._reveal()
        # Rows that have only just come may be beyond what can be scrolled to before the next layout.
        self.call_after_refresh(self._reveal)
        self.post_message(self.Moved())

    def _reveal(self) -> None:
        """Scroll so that the cursor's row is visible."""
        top, height = self.scroll_offset.y, self.size.height - 1
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False, immediate=True)
        elif self._cursor >= top + height:
            self.scroll_to(y=self._cursor - height + 1, animate=False, immediate=True)

    # ---- painting ---------------------------------------------------------------------------------------

    @property
    def _inner_width(self) -> int:
        # Without the scrollbar's column, which is kept free.
        return max(self.scrollable_content_region.width - MARK_WIDTH, 0)

    def on_resize(self) -> None:
        """Choose the columns anew."""
        self._painted.clear()
        self.show_rows(self._all, self._columns)

    def notify_style_update(self) -> None:
        """Forget the colours of the former theme."""
        super().notify_style_update()
        self._styles.clear()

    def refresh_row(self, index: int) -> None:
        """Paint a row again."""
        self.refresh(Region(0, index - self.scroll_offset.y + 1, self.size.width, 1))

    def render_line(self, y: int) -> Strip:
        """Return one line of the visible part."""
        width = self.size.width
        if y == 0:
            return self._strip(
                ((" " * MARK_WIDTH, PLAIN), *header_line(self._layout, self.sort)),
                self.get_visual_style("table--header"),
                width,
            )
        index = self.scroll_offset.y + y - 1
        if index >= len(self._rows):
            text = f"  {self._empty}" if y == 1 and not self._rows else ""
            return self._strip(((text, MUTED),), self.visual_style, width)
        cells = self._cells(self._rows[index])
        self._painted[y] = cells
        style = self.visual_style
        if index == self._cursor:
            style += self.get_visual_style("table--cursor", partial=True)
        return self._strip(self._row_line(index, cells), style, width)

    def _cells(self, row: Row) -> tuple[Line, ...]:
        banner = self._banner(row)
        return (banner,) if banner is not None else tuple(column.cell(row) for column, _ in self._layout)

    def _row_line(self, index: int, cells: tuple[Line, ...]) -> Line:
        row = self._rows[index]
        cursor = "▸" if index == self._cursor else " "
        marks = ((cursor, ACCENT), ("✓" if self._key(row) in self.marked else " ", ACCENT))
        return (*marks, *(cells[0] if self._banner(row) is not None else row_line(self._layout, cells)))

    def _strip(self, styled: Line, base: Style, width: int) -> Strip:
        segments = [
            Segment(printable(text), (base + self._style(token)).rich_style) for text, token in styled if text
        ]
        return Strip(segments).crop_extend(0, width, base.rich_style)

    def _style(self, token: str) -> Style:
        style = self._styles.get(token)
        if style is None:
            style = self._styles[token] = Style.parse(token, self.app.theme_variables)
        return style

    def _repaint_changed(self) -> None:
        """Paint the cells again that differ from what is on the screen."""
        top = self.scroll_offset.y
        for y in range(1, self.size.height):
            index = top + y - 1
            before = self._painted.get(y)
            if index >= len(self._rows):
                if before is not None:
                    del self._painted[y]
                    self.refresh(Region(0, y, self.size.width, 1))
                continue
            cells = self._cells(self._rows[index])
            if before is None or len(before) != len(cells) or len(cells) != len(self._layout):
                if before != cells:
                    self.refresh(Region(0, y, self.size.width, 1))
                continue
            if before != cells:
                self.refresh(*self._changed_regions(y, before, cells))

    def _changed_regions(self, y: int, before: tuple[Line, ...], after: tuple[Line, ...]) -> list[Region]:
        regions, x = [], MARK_WIDTH
        for (_, width), old, new in zip(self._layout, before, after, strict=True):
            if old != new:
                regions.append(Region(x, y, width, 1))
            x += width + GAP
        return regions
