"""What people read: tables of the admin API's answers. Pure but for `show`."""

import datetime
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llumnix.admin.schema import Cluster, Event, Instance, Migration, Node, Percentiles, Request

WIDTH_OF_A_PIPE = 240
NONE = "-"


def show(table: Table) -> None:
    """Print a table as wide as the terminal; where nobody looks, as wide as it needs to be."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_PIPE)
    console.print(table)


def instances(items: Iterable[Instance]) -> Table:
    return _table(
        ("INSTANCE", "NODE", "STATE", ">KV", ">FREENESS", ">RUN", ">WAIT", ">TOK/S", ">IN", ">OUT", "REASON"),
        (
            (
                i.id,
                (i.node or NONE)[:12],
                i.state,
                f"{i.kv_blocks_used}/{i.kv_blocks_total}",
                NONE if i.freeness is None else f"{i.freeness:.1f}",
                i.running,
                i.waiting,
                f"{i.tokens_per_s:.0f}",
                i.migrations_in,
                i.migrations_out,
                i.stage or "; ".join(i.blockers) or i.reason,
            )
            for i in items
        ),
    )


def nodes(items: Iterable[Node]) -> Table:
    return _table(
        ("NODE", "ADDRESS", "STATE", ">CPUS", ">GPUS", "INSTANCES", "REASON"),
        (
            (
                n.id,
                n.address,
                n.state,
                f"{n.cpus:g}",
                f"{n.gpus:g}",
                " ".join(n.instances) or NONE,
                "; ".join(n.blockers) or n.reason,
            )
            for n in items
        ),
    )


def requests(items: Iterable[Request]) -> Table:
    return _table(
        (
            "REQUEST",
            "INSTANCE",
            "PRIORITY",
            "STATE",
            ">PROMPT",
            ">OUTPUT",
            ">BLOCKS",
            ">AGE",
            ">MOVES",
            "REASON",
        ),
        (
            (
                r.id,
                r.instance or NONE,
                r.priority,
                r.state,
                r.prompt_tokens,
                r.output_tokens,
                r.kv_blocks,
                f"{r.age_s:.1f} s",
                r.migrations,
                r.reason,
            )
            for r in items
        ),
    )


def migrations(items: Iterable[Migration]) -> Table:
    return _table(
        (
            "MIGRATION",
            "REQUEST",
            "FROM",
            "TO",
            "STATE",
            ">BLOCKS",
            ">SKIPPED",
            ">BYTES",
            ">DOWNTIME",
            "REASON",
        ),
        (
            (
                m.id,
                m.request,
                m.source,
                m.target,
                m.state,
                m.blocks_sent if m.blocks_total is None else f"{m.blocks_sent}/{m.blocks_total}",
                m.blocks_skipped,
                m.bytes,
                NONE if m.downtime_ms is None else f"{m.downtime_ms:.1f} ms",
                f"{m.reason}; {m.why}" if m.why else m.reason,
            )
            for m in items
        ),
    )


def cluster(shown: Cluster) -> Table:
    """Return the cluster as names and values."""
    counts, totals, scaling = shown.counts, shown.totals, shown.scaling
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.instances.items()))
    latency = shown.latency
    rows: list[tuple[str, str]] = [
        (
            "cluster",
            f"{shown.name}, llumnix {shown.version}, up {datetime.timedelta(seconds=int(shown.uptime_s))}",
        ),
        ("state", f"{shown.state}: {shown.reason}" if shown.reason else shown.state),
        ("endpoint", f"{shown.endpoint_url or NONE}, model {shown.model or NONE}"),
        ("policies", f"{shown.policies.scheduler}, dispatch by {shown.policies.dispatch}"),
        ("instances", f"{states or 'none'}; {scaling.wanted} wanted, {scaling.min} to {scaling.max}"),
        ("requests", f"{counts.requests_running} running, {counts.requests_queued} queued"),
        ("KV blocks", f"{totals.kv_blocks_used} of {totals.kv_blocks_total} used"),
        ("tokens/s", f"{totals.tokens_per_s:.0f}"),
        (
            "migrations",
            f"{counts.migrations_active} under way, {totals.migrations_committed} committed, "
            f"{totals.migrations_aborted} aborted",
        ),
        ("TTFT", _percentiles(latency.ttft_ms if latency else None)),
        ("TPOT", _percentiles(latency.tpot_ms if latency else None)),
    ]
    return _table(("", ""), rows, header=False)


def event_line(event: Event) -> str:
    """Return an event as one line."""
    when = datetime.datetime.fromtimestamp(event.time).astimezone().isoformat(" ", "seconds")
    return f"{event.seq} {when} {event.severity:7} {event.kind} {event.target} {event.message}".rstrip()


def _percentiles(of: Percentiles | None) -> str:
    return NONE if of is None else f"p50 {of.p50:.1f} ms, p90 {of.p90:.1f} ms, p99 {of.p99:.1f} ms"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, header: bool = True) -> Table:
    """Columns that begin with > are numbers."""
    table = Table(box=SIMPLE_HEAD if header else None, show_header=header, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        # Ids and reasons are no markup, whatever brackets are in them.
        table.add_row(*(escape(str(cell)) for cell in row))
    return table
