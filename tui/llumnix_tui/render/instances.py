"""The cluster screen's rows: instances, under their nodes where there are several."""

from collections.abc import Callable, Sequence

from llumnix.admin.schema import Instance, Node, PriorityClass
from llumnix_tui.render import values
from llumnix_tui.render.bars import sparkline, usage_bar
from llumnix_tui.render.columns import Column, SortValue, natural
from llumnix_tui.render.states import state
from llumnix_tui.render.text import ACCENT, BAD, GOOD, MUTED, STRONG, WARN, Line, joined, labelled, line
from llumnix_tui.snapshot import History, Snapshot

BAR_WIDTH = 8
# With more classes than this, a narrow terminal shows the sums only.
NARROW_CLASSES = 2
CLASS_WIDTH = 6
WIDE_TABLE = 108
TREND_WIDTH = 14
InstanceRow = Instance | Node


def row_key(row: InstanceRow) -> str:
    """Return a key that tells instances and nodes apart."""
    return f"{'node' if isinstance(row, Node) else 'instance'}/{row.id}"


def haystack(row: InstanceRow) -> str:
    """Return what the filter searches."""
    if isinstance(row, Node):
        return " ".join((row.id, row.address, row.state, row.reason, *row.instances))
    return " ".join((row.id, row.state, row.node or "", row.reason, row.stage))


def instance_rows(snapshot: Snapshot) -> list[InstanceRow]:
    """Return the instances, after their node's row where there are several nodes."""
    if len(snapshot.nodes) < 2:
        return list(snapshot.instances)
    rows: list[InstanceRow] = []
    for node in snapshot.nodes:
        rows.append(node)
        rows.extend(item for item in snapshot.instances if item.node == node.id)
    known = {node.id for node in snapshot.nodes}
    return rows + [item for item in snapshot.instances if item.node not in known]


def node_line(row: InstanceRow) -> Line | None:
    """Return a node's line, which spans all columns."""
    if not isinstance(row, Node):
        return None
    count = len(row.instances)
    return joined(
        (
            line(row.id, STRONG),
            line(row.address, MUTED),
            state(row.state),
            line("head", MUTED) if row.head else (),
            line(f"{count} instance{'' if count == 1 else 's'}"),
            line(f"{row.cpus:.0f} CPUs", MUTED),
            line(f"{row.gpus:.0f} GPUs", MUTED) if row.gpus else (),
            line("safe to remove", GOOD) if row.safe_to_remove else (),
            line("; ".join(row.blockers), WARN),
            line(row.reason, MUTED),
        )
    )


def instance_columns(classes: Sequence[PriorityClass], history: History) -> list[Column[InstanceRow]]:
    """Return the columns: running/waiting requests by priority class, or their sums where room is short."""
    wide = 0 if len(classes) <= NARROW_CLASSES else WIDE_TABLE + CLASS_WIDTH * len(classes)
    by_class = [_class_column(item.name, wide) for item in classes]
    if wide or not classes:
        by_class.insert(
            0, _column("RUN/WAIT", 9, lambda i: _load_line(i.running, i.waiting), _num_requests, "R")
        )
    return [
        _column("ID", 5, lambda i: line(i.id, STRONG), lambda i: natural(i.id), "I"),
        _column("STATE", 12, lambda i: state(i.state), lambda i: i.state, "S"),
        _column("KV    phys virt", 18, kv_cell, kv_share, "K"),
        _column("FREE", 6, freeness_cell, lambda i: i.freeness, "F"),
        *by_class,
        _column("TOK/S", 5, lambda i: line(values.count(i.tokens_per_s)), lambda i: i.tokens_per_s, "T"),
        _column("STEP", 5, lambda i: line(values.decimal(i.step_ms)), lambda i: i.step_ms, "P"),
        _column("IN/OUT", 6, _moves_cell, lambda i: i.migrations_in + i.migrations_out, "O"),
        _column(
            "KV AND TOKENS/S", 2 * TREND_WIDTH + 1, lambda i: _trend_cell(i, history), min_width=WIDE_TABLE
        ),
        _column("", 0, _reason_cell, min_width=WIDE_TABLE + 20, stretches=True),
    ]


def kv_cell(instance: Instance, bar_width: int = BAR_WIDTH) -> Line:
    """Return the KV cache's bar, and physical and virtual usage in percent."""
    total, virtual = instance.kv_blocks_total, instance.kv_blocks_virtual
    style = BAD if virtual is not None and virtual > total else MUTED
    return (
        *usage_bar(instance.kv_blocks_used, virtual, total, bar_width),
        (f"{values.percent(instance.kv_blocks_used, total):>5}", ""),
        (f"{values.percent(virtual, total):>5}", style),
    )


def freeness_cell(instance: Instance) -> Line:
    """Return the freeness; an instance without one takes nothing."""
    if instance.freeness is None:
        return line("–", MUTED)
    return line(values.decimal(instance.freeness), BAD if instance.freeness < 0 else "")


def kv_share(instance: Instance) -> float:
    """Return the share of the KV cache in use."""
    return instance.kv_blocks_used / instance.kv_blocks_total if instance.kv_blocks_total else 0.0


def _num_requests(instance: Instance) -> float:
    return instance.running + instance.waiting


def _class_column(name: str, min_width: int) -> Column[InstanceRow]:
    def load_of(instance: Instance) -> tuple[int, int]:
        found = next((load for load in instance.priorities if load.name == name), None)
        return (0, 0) if found is None else (found.running, found.waiting)

    title = name[:CLASS_WIDTH].upper()
    return _column(title, CLASS_WIDTH, lambda i: _load_line(*load_of(i)), min_width=min_width)


def _load_line(running: int, waiting: int) -> Line:
    if not running and not waiting:
        return line("0/0", MUTED)
    return ((f"{values.count(running)}/", ""), (values.count(waiting), WARN if waiting else ""))


def _moves_cell(instance: Instance) -> Line:
    return line(f"{values.count(instance.migrations_in)}/{values.count(instance.migrations_out)}")


def _trend_cell(instance: Instance, history: History) -> Line:
    series = history.of(instance.id)
    kv, speed = series.kv_share, series.tokens_per_s
    return (
        (sparkline(kv, TREND_WIDTH, top=1.0), ACCENT),
        (" ", ""),
        (sparkline(speed, TREND_WIDTH), GOOD),
    )


def _reason_cell(instance: Instance) -> Line:
    if instance.safe_to_remove:
        return line("safe to remove", GOOD)
    return line("; ".join((*instance.blockers, instance.reason or instance.stage)).strip("; "), MUTED)


def _column(
    title: str,
    width: int,
    cell: Callable[[Instance], Line],
    sort: Callable[[Instance], SortValue] | None = None,
    letter: str = "",
    *,
    min_width: int = 0,
    stretches: bool = False,
) -> Column[InstanceRow]:
    """Return a column of instances; nodes have lines of their own and stand last when sorted."""
    return Column(
        title,
        width,
        lambda row: () if isinstance(row, Node) else cell(row),
        None if sort is None else lambda row: None if isinstance(row, Node) else sort(row),
        letter,
        right=title in ("FREE", "TOK/S", "STEP", "IN/OUT"),
        min_width=min_width,
        stretches=stretches,
    )


def about(row: InstanceRow, history: History, width: int) -> list[Line]:
    """Return the trends of the row under the cursor, and why it is in its state."""
    if isinstance(row, Node):
        return [joined((line(row.id, STRONG), state(row.state), line(row.reason, MUTED)))]
    series, room = history.of(row.id), max((width - 40) // 3, 8)
    trends = joined(
        (
            line(row.id, STRONG),
            labelled("KV", line(sparkline(series.kv_share, room, top=1.0), ACCENT)),
            labelled("tok/s", line(sparkline(series.tokens_per_s, room), GOOD)),
            labelled("waiting", line(sparkline(series.waiting, room), WARN)),
            line(f"last {values.age(series.span_s)}", MUTED),
        )
    )
    return [trends, _reason_cell(row)]
