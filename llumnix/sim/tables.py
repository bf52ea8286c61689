"""Results as tables on the terminal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from llumnix.sim.report import Record

if TYPE_CHECKING:
    from llumnix.sim.replay import Replay

EQUAL_P99_S = 4.0
"""P99 prefill at which Figure 15 compares numbers of instances (section 6.5)."""


def run_table(records: Sequence[Record]) -> Table:
    """Mean and tail latencies of each policy."""
    table = Table(title_justify="left")
    table.add_column("policy")
    table.add_column("priority")
    headings = ("prefill mean", "P50", "P95", "P99", "decode mean", "P99", "request mean", "P99", "loss")
    for heading in (*headings, "preempted", "migrations", "instances"):
        table.add_column(heading, justify="right")
    for record in records:
        times = (
            *("prefill_mean_s", "prefill_p50_s", "prefill_p95_s", "prefill_p99_s"),
            *("decode_mean_s", "decode_p99_s", "request_mean_s", "request_p99_s", "preemption_loss_s"),
        )
        table.add_row(
            str(record["policy"]),
            str(record["priority"]),
            *(_seconds(record[name]) for name in times),
            f"{record['preemptions']:.0f}",
            f"{record['migrations']:.0f}",
            f"{record['average_instances']:.2f}",
        )
    return table


def paper_table(records: Sequence[Record]) -> Table:
    """Our figures; in brackets what was published, and how often P99 prefill fits into that of `load`."""
    table = Table(title_justify="left", caption="seconds; \\[published]", caption_justify="left")
    for heading in ("panel", "x", "rate", "policy"):
        table.add_column(heading)
    for heading in ("prefill mean", "prefill P99", "vs load", "decode P99", "request mean", "loss"):
        table.add_column(heading, justify="right")
    for heading in ("migrations", "instances"):
        table.add_column(heading, justify="right")
    baseline = {_place(r): r["prefill_p99_s"] for r in records if r["policy"] == "load"}
    for record in records:
        base = baseline.get(_place(record))
        table.add_row(
            str(record["panel"]),
            f"{record['x']:g}",
            f"{record['rate']:.4g}",
            str(record["policy"]),
            _beside(record, "prefill_mean_s"),
            _beside(record, "prefill_p99_s"),
            f"{base / record['prefill_p99_s']:.2f}x" if base and record["prefill_p99_s"] else "",
            *(_beside(record, name) for name in ("decode_p99_s", "request_mean_s", "preemption_loss_s")),
            f"{record['migrations']:.0f}",
            _beside(record, "average_instances"),
        )
    return table


def cost_lines(records: Sequence[Record]) -> list[str]:
    """Instances that each policy needs for EQUAL_P99_S, on the line through its points (Figure 15)."""
    needed = {
        policy: _instances_at(EQUAL_P99_S, [record for record in records if record["policy"] == policy])
        for policy in dict.fromkeys(record["policy"] for record in records)
    }
    lines = []
    for policy, instances in needed.items():
        text = "outside of its points" if instances is None else f"{instances:.2f} instances"
        if instances and (base := needed.get("load")) and policy != "load":
            text += f" ({instances / base - 1:+.1%} against load)"
        lines.append(f"at a P99 prefill of {EQUAL_P99_S:g} s {policy}: {text}")
    return lines


def _instances_at(p99_s: float, records: Sequence[Record]) -> float | None:
    """Least number of instances where the line through the points comes down to this P99 prefill."""
    points = sorted((r["average_instances"], math.log(max(r["prefill_p99_s"], 1e-6))) for r in records)
    target = math.log(p99_s)
    for (fewer, higher), (more, lower) in itertools.pairwise(points):
        if higher >= target >= lower and higher > lower:
            return float(fewer + (more - fewer) * (higher - target) / (higher - lower))
    return None


def replay_table(replayed: Replay) -> Table:
    """Decisions by kind of the recorded policy and of the other one."""
    title = f"{replayed.events} events in {replayed.duration_s:.1f} s"
    table = Table("decision", title=title, title_justify="left")
    for heading in (f"{replayed.recorded} (recorded)", replayed.other):
        table.add_column(heading, justify="right")
    own, other = (replayed.decisions[side] for side in ("recorded", "other"))
    for kind in sorted(own | other):
        table.add_row(kind, str(own[kind]), str(other[kind]))
    return table


def difference_table(replayed: Replay, limit: int) -> Table:
    """The first decisions that only one of the two took, with its reason."""
    shown = replayed.differences[:limit]
    title = f"{len(shown)} of {len(replayed.differences)} differences"
    table = Table("time", "only", "decision", "reason", title=title, title_justify="left")
    names = {"recorded": replayed.recorded, "other": replayed.other}
    for item in shown:
        decision = f"{item.decision.kind} {item.decision.subject}"
        table.add_row(f"{item.now:.3f}", names[item.side], escape(decision), escape(item.reason))
    return table


def _place(record: Record) -> tuple[str, float, float]:
    return record["panel"], record["x"], record["rate"]


def _beside(record: Record, name: str) -> str:
    published = record.get(f"published_{name}")
    # Rich takes what is in square brackets for markup.
    return _seconds(record[name]) + (f" \\[{_seconds(published)}]" if published is not None else "")


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
