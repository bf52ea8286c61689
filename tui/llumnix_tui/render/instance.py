"""One instance at length: its figures, its KV cache over time, and what blocks its drain."""

from llumnix.admin.schema import Instance
from llumnix_tui.render import values
from llumnix_tui.render.bars import chart, sparkline
from llumnix_tui.render.instances import freeness_cell, kv_cell
from llumnix_tui.render.states import state
from llumnix_tui.render.text import ACCENT, GOOD, MUTED, STRONG, WARN, Line, joined, labelled, line
from llumnix_tui.snapshot import Series

CHART_HEIGHT = 3
AXIS = ("100%", " 50%", "  0%")


def panel(instance: Instance) -> list[Line]:
    """Return an instance's figures."""
    blocks = f"{values.count(instance.kv_blocks_used)}/{values.count(instance.kv_blocks_total)}"
    return [
        joined(
            (
                line(instance.id, STRONG),
                state(instance.state),
                labelled("node", instance.node or "–"),
                labelled("pid", str(instance.pid or "–")),
                labelled("up", values.age(instance.uptime_s)),
                labelled("restarts", str(instance.restarts)),
                line(instance.stage or instance.reason, MUTED),
            )
        ),
        joined(
            (
                (("KV ", MUTED), *kv_cell(instance)),
                labelled("freeness", freeness_cell(instance)),
                labelled("blocks", blocks),
                labelled("virtual", values.count(instance.kv_blocks_virtual)),
                labelled("headroom", values.count(instance.kv_blocks_headroom)),
            )
        ),
        joined(
            (
                *(labelled(load.name, f"{load.running}/{load.waiting}") for load in instance.priorities),
                labelled("tokens/s", values.count(instance.tokens_per_s)),
                labelled("step", values.milliseconds(instance.step_ms)),
                labelled("migrations in/out", f"{instance.migrations_in}/{instance.migrations_out}"),
            )
        ),
        drain_line(instance),
    ]


def drain_line(instance: Instance) -> Line:
    """Return what a drain still waits for."""
    if instance.safe_to_remove:
        return line("✔ safe to remove", GOOD)
    if instance.blockers:
        return labelled("drain waits for", "; ".join(instance.blockers), WARN)
    if instance.state == "draining":
        return labelled("drain", "under way", WARN)
    return labelled("drain", "not asked for", MUTED)


def over_time(series: Series, width: int) -> list[Line]:
    """Return the KV cache's usage over the last minutes as a chart, and tokens per second below it."""
    room = max(width - 18, 10)
    rows = chart(series.kv_share, room, CHART_HEIGHT, top=1.0)
    axis = [((f"{label} ", MUTED), (row, ACCENT)) for label, row in zip(AXIS, rows, strict=True)]
    speed = (("t/s  ", MUTED), (sparkline(series.tokens_per_s, room), GOOD))
    return [*axis, (*speed, (f"  last {values.age(series.span_s)}", MUTED))]
