"""Rows of migrations, their totals per minute, and who moves to whom."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence

from llumnix.admin.schema import Migration, MigrationTotals
from llumnix_tui.render import values
from llumnix_tui.render.bars import progress_bar, sparkline
from llumnix_tui.render.columns import Column
from llumnix_tui.render.states import state
from llumnix_tui.render.text import (
    ACCENT,
    BAD,
    DASH,
    GOOD,
    MUTED,
    STRONG,
    Line,
    fitted,
    joined,
    labelled,
    line,
    width_of,
)
from llumnix_tui.snapshot import Moves, Snapshot

BAR_WIDTH = 10
MINUTES = 20
ACTIVE = ("prepare", "copying")


def row_key(migration: Migration) -> str:
    """Return a migration's id."""
    return migration.id


def haystack(migration: Migration) -> str:
    """Return what the filter searches."""
    m = migration
    return f"{m.id} {m.request} {m.source} {m.target} {m.source}>{m.target} {m.state} {m.reason} {m.why}"


def ordered(migrations: Sequence[Migration]) -> list[Migration]:
    """Return those under way, then those that ended, each the newest first."""
    return sorted(migrations, key=lambda m: (m.state not in ACTIVE, -m.started_at, m.id))


COLUMNS: tuple[Column[Migration], ...] = (
    Column("STATE", 11, lambda m: state(m.state), lambda m: m.state, "S"),
    Column("REQUEST", 10, lambda m: line(m.request, STRONG), lambda m: m.request, "R", stretches=True),
    Column("FROM>TO", 9, lambda m: line(f"{m.source}>{m.target}"), lambda m: f"{m.source}>{m.target}", "F"),
    Column("PROGRESS", BAR_WIDTH + 5, lambda m: _progress(m)),
    Column("STAGE", 5, lambda m: line(values.count(m.stages)), lambda m: m.stages, "A", right=True),
    Column("SENT/SKIP", 9, lambda m: _blocks(m), lambda m: m.blocks_sent, "N", right=True),
    Column(
        "BYTES", 8, lambda m: line(values.size(m.bytes)), lambda m: m.bytes, "B", right=True, min_width=85
    ),
    Column(
        "DOWN ms", 7, lambda m: line(values.decimal(m.downtime_ms)), lambda m: m.downtime_ms, "D", right=True
    ),
    Column("WHY", 24, lambda m: _why(m), lambda m: m.reason, "W", min_width=108, stretches=True),
)


def summary(snapshot: Snapshot, moves: Sequence[Moves], width: int) -> list[Line]:
    """Return totals: since the daemon's start, of what is listed of them, and per minute."""
    totals = snapshot.cluster.totals
    downtimes = sorted(
        m.downtime_ms for m in snapshot.migrations if m.state == "committed" and m.downtime_ms is not None
    )
    p50, p99 = (values.decimal(percentile(downtimes, share)) for share in (0.5, 0.99))
    minutes = per_minute(snapshot, moves)
    last = f"{minutes[-1].committed}+{minutes[-1].aborted}" if minutes else DASH
    figures = joined(
        (
            (*labelled("downtime p50/99", f"{p50}/{p99} ms"), (f" of {len(downtimes)}", MUTED)),
            labelled("last minute", last),
            labelled("per minute", ()),
        )
    )
    room = max(min(width - width_of(figures), MINUTES), 0)
    trend = sparkline([m.committed for m in minutes][-room:], room)
    return [
        joined(
            (
                labelled("under way", str(sum(m.state in ACTIVE for m in snapshot.migrations)), ACCENT),
                labelled("in all", values.count(totals.migrations_committed)),
                labelled("aborted", values.count(totals.migrations_aborted)),
                labelled("moved", values.size(totals.migrated_bytes)),
            )
        ),
        (*figures, (trend, GOOD)),
    ]


def why_line(migration: Migration) -> Line:
    """Return why a migration was begun, and why it was aborted."""
    return joined(
        (
            labelled(migration.request, migration.reason or "–", ""),
            labelled("aborted:", migration.why, BAD) if migration.why else (),
        )
    )


def per_minute(snapshot: Snapshot, moves: Sequence[Moves]) -> list[Moves]:
    """Return how many ended in each of the last minutes, the latest last; minutes not known are left out.

    By the daemon's counters since they are watched, before that by the list as far as it reaches.
    """
    now = snapshot.taken_at
    ended = [m for m in snapshot.migrations if m.ended_at is not None]
    counts = Counter((int((now - (m.ended_at or 0.0)) // 60), m.state) for m in ended)
    totals = snapshot.cluster.totals
    reach = MINUTES
    if len(ended) < totals.migrations_committed + totals.migrations_aborted:
        reach = int((now - min((m.ended_at or 0.0 for m in ended), default=now)) // 60)
    times = [sample.at for sample in moves]
    known: list[Moves] = []
    for ago in range(MINUTES):
        end = now - 60 * ago
        before, after = bisect_right(times, end - 60) - 1, bisect_right(times, end) - 1
        if before >= 0:
            past, then = moves[before], moves[after]
            known.append(Moves(end, then.committed - past.committed, then.aborted - past.aborted))
        elif ago < reach:
            known.append(Moves(end, counts[ago, "committed"], counts[ago, "aborted"]))
        else:
            break
    return known[::-1]


def percentile(ordered_values: Sequence[float], share: float) -> float | None:
    """Return a percentile by the nearest rank of sorted values, None if there are none."""
    if not ordered_values:
        return None
    return ordered_values[min(int(share * len(ordered_values)), len(ordered_values) - 1)]


def matrix(totals: MigrationTotals, width: int, height: int) -> list[Line]:
    """Return how many requests each source (row) gave to each target (column); the busiest that fit."""
    pairs = Counter({(p.source, p.target): p.committed for p in totals.pairs if p.committed})
    if not pairs:
        return [line("no migration has ended yet", MUTED)]
    by_source, by_target = Counter[str](), Counter[str]()
    for (source, target), number in pairs.items():
        by_source[source] += number
        by_target[target] += number
    cell = max(len(name) for name in (*by_source, *by_target)) + 1
    cell = max(cell, 5)
    sources = sorted(name for name, _ in by_source.most_common(max(height - 1, 1)))
    targets = sorted(name for name, _ in by_target.most_common(max(width // cell - 2, 1)))
    left_out = len(by_source) + len(by_target) - len(sources) - len(targets)
    head = (*fitted(line("from\\to", MUTED), cell + 3), *_cells(targets, cell, STRONG))
    rows = [
        (*fitted(line(s, STRONG), cell + 3), *_cells((pairs[s, t] for t in targets), cell, ACCENT))
        for s in sources
    ]
    return [head, *rows] + (
        [line(f"{left_out} instances with fewer moves left out", MUTED)] if left_out else []
    )


def detail(migration: Migration) -> list[Line]:
    """Return all that is known of a migration."""
    m = migration
    return [
        labelled("id         ", m.id),
        labelled("request    ", m.request),
        labelled("from > to  ", f"{m.source} > {m.target}"),
        labelled("state      ", state(m.state)),
        labelled("reason     ", m.reason or "–"),
        labelled("aborted as ", m.why or "–"),
        labelled("started    ", values.clock_time(m.started_at)),
        labelled("ended      ", "–" if m.ended_at is None else values.clock_time(m.ended_at)),
        labelled("stages     ", str(m.stages)),
        labelled(
            "blocks     ", f"{m.blocks_sent} sent, {m.blocks_skipped} skipped of {m.blocks_total or '–'}"
        ),
        labelled("bytes      ", values.size(m.bytes)),
        labelled("copying    ", values.milliseconds(m.copy_ms)),
        labelled("downtime   ", values.milliseconds(m.downtime_ms)),
    ]


def _cells(found: Iterable[str | int], width: int, style: str) -> Line:
    return tuple((f"{item or '·':>{width}}", style if item else MUTED) for item in found)


def _progress(migration: Migration) -> Line:
    if migration.state == "committed":
        return line("done", GOOD)
    if migration.state == "aborted":
        return line(migration.why or "aborted", BAD)
    done = migration.blocks_sent + migration.blocks_skipped
    bar = progress_bar(done, migration.blocks_total, BAR_WIDTH)
    return (*bar, (f"{values.percent(done, migration.blocks_total):>5}", ""))


def _blocks(migration: Migration) -> Line:
    return ((values.count(migration.blocks_sent), ""), (f"/{values.count(migration.blocks_skipped)}", MUTED))


def _why(migration: Migration) -> Line:
    if migration.why:
        return ((migration.why, BAD), (f"; {migration.reason}", MUTED))
    return line(migration.reason or "–", MUTED)
