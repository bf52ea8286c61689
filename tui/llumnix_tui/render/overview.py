"""The header line, and the cluster's totals above its instances."""

from collections.abc import Sequence

from llumnix.admin.schema import Instance, Percentiles
from llumnix_tui.render import values
from llumnix_tui.render.bars import sparkline, usage_bar
from llumnix_tui.render.states import state
from llumnix_tui.render.text import (
    ACCENT,
    BAD,
    GOOD,
    MUTED,
    STRONG,
    WARN,
    Line,
    fitted,
    joined,
    labelled,
    line,
    width_of,
)
from llumnix_tui.snapshot import Series, Snapshot
from llumnix_tui.store import Store

WIDE = 110
FRESH_S = 3.0
# A panel's padding.
PADDING = 2
TREND_WIDTH = 20


def header_line(store: Store, source: str, now: float, *, paused: bool, read_only: bool) -> Line:
    """Return cluster, connection and age of the data in one line."""
    snapshot, connection = store.snapshot, store.connection
    name = line(snapshot.cluster.name if snapshot else "llumnix", STRONG)
    age = None if snapshot is None else max(now - snapshot.taken_at, 0.0)
    flags = joined(
        (line("‖ paused", WARN) if paused else (), line("read-only", ACCENT) if read_only else ()),
    )
    if connection.state == "lost":
        what = "not let in" if connection.refused else "disconnected"
        text = f"✖ {what}, retry {connection.retries}"
        behind = f"data {values.age(age)} old" if age is not None else "no data yet"
        return joined((name, line(text, BAD), line(behind, WARN), flags, line(connection.error, MUTED)))
    if connection.state in ("replay", "replayed"):
        text = "▷ replay" if connection.state == "replay" else "□ replay ended"
        taken = values.clock_time(snapshot.taken_at) if snapshot else ""
        return joined((name, line(text, ACCENT), line(taken), flags, line(source, MUTED)))
    if snapshot is None:
        return joined((name, line("◌ connecting", WARN), flags, line(source, MUTED)))
    style = GOOD if age is not None and age < FRESH_S else WARN
    return joined((name, line("● live", style), labelled("age", values.age(age)), flags, line(source, MUTED)))


def totals(snapshot: Snapshot, series: Series, width: int) -> list[Line]:
    """Return the cluster's state, load, latencies and scaling bounds in four lines."""
    wide = width >= WIDE
    return [
        _cluster(snapshot, width - PADDING, wide),
        _load(snapshot, wide),
        _speed(snapshot, series, width - PADDING),
        _by_class(snapshot),
    ]


def _cluster(snapshot: Snapshot, width: int, wide: bool) -> Line:
    """Where room is short, reason and instances are shortened: both stand in the table too."""
    cluster = snapshot.cluster
    counts = [line(f"{number} {word}") for word, number in cluster.counts.instances.items() if number]
    situation = joined(
        (line(cluster.reason, WARN), joined(counts, ", ") or line("no instances", WARN)),
    )
    scaling = cluster.scaling
    autoscale = f", auto{'scaled' if wide else ''}" if cluster.policies.autoscale else ""
    wanted = labelled("wanted", f"{scaling.wanted} of {scaling.min}..{scaling.max}{autoscale}")
    policy = labelled("policy", cluster.policies.scheduler)
    room = width - width_of(joined((state(cluster.state), wanted, policy))) - len("  ")
    return joined(
        (
            state(cluster.state),
            situation if width_of(situation) <= room else fitted(situation, max(room, 1)),
            wanted,
            policy,
            labelled("up", values.age(cluster.uptime_s)) if wide else (),
            labelled("model", cluster.model or "–") if wide else (),
        )
    )


def _load(snapshot: Snapshot, wide: bool) -> Line:
    counts, (used, virtual, total) = snapshot.cluster.counts, kv_of(snapshot.instances)
    shares = f"{values.percent(used, total)} virtual {values.percent(virtual, total)}"
    return joined(
        (
            (("KV ", MUTED), *usage_bar(used, virtual, total, 20 if wide else 10), (f" {shares}", STRONG)),
            labelled("blocks", f"{values.count(used)}/{values.count(total)}") if wide else (),
            labelled("running", values.count(counts.requests_running)),
            labelled(
                "queued", values.count(counts.requests_queued), WARN if counts.requests_queued else STRONG
            ),
            labelled("migrating", values.count(counts.migrations_active)),
        )
    )


def _speed(snapshot: Snapshot, series: Series, width: int) -> Line:
    latency = snapshot.cluster.latency
    figures = joined(
        (
            line("p50/90/99 ms", MUTED),
            labelled("TTFT", percentiles(latency.ttft_ms if latency else None)),
            labelled("TPOT", percentiles(latency.tpot_ms if latency else None)),
            labelled("tok/s", values.count(sum(item.tokens_per_s for item in snapshot.instances))),
        )
    )
    span = line(f"last {values.age(series.span_s)}", MUTED)
    room = width - width_of(figures) - len("  ")
    trend = line(sparkline(series.tokens_per_s, min(room, TREND_WIDTH)), GOOD) if series.at else ()
    fits = trend and room >= TREND_WIDTH + len("  ") + width_of(span)
    return joined((figures, trend, span if fits else ()))


def _by_class(snapshot: Snapshot) -> Line:
    loads = [load for item in snapshot.instances for load in item.priorities]
    parts = []
    for name in [item.name for item in snapshot.cluster.priorities]:
        running = sum(load.running for load in loads if load.name == name)
        waiting = sum(load.waiting for load in loads if load.name == name)
        waiting += snapshot.cluster.counts.requests_held.get(name, 0)
        parts.append(labelled(name, f"{values.count(running)}/{values.count(waiting)}"))
    done = snapshot.cluster.totals
    moves = f"{values.count(done.migrations_committed)} done, {values.count(done.migrations_aborted)} aborted"
    return joined((*parts, labelled("migrations", moves), labelled("restarts", values.count(done.restarts))))


def percentiles(found: Percentiles | None) -> Line:
    """Return the median, 90th and 99th percentile."""
    if found is None:
        return line("–")
    shown = "/".join(values.decimal(value) for value in (found.p50, found.p90, found.p99))
    return line(shown, STRONG)


def kv_of(instances: Sequence[Instance]) -> tuple[int, int | None, int]:
    """Return blocks used, virtual usage (None if no instance tells), and blocks in all."""
    used = sum(item.kv_blocks_used for item in instances)
    total = sum(item.kv_blocks_total for item in instances)
    known = [item.kv_blocks_virtual for item in instances if item.kv_blocks_virtual is not None]
    return used, sum(known) if known else None, total
