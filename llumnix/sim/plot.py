"""PNG plots in the manner of the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from llumnix.errors import ConfigError
from llumnix.sim.records import RunResult
from llumnix.sim.report import Record

_METRICS = {
    "prefill_mean_s": "prefill mean (s)",
    "prefill_p99_s": "prefill P99 (s)",
    "decode_p99_s": "decode P99 (s)",
    "request_mean_s": "request mean (s)",
    "preemption_loss_s": "preemption loss (s)",
}
_COST = ("average_instances", "average number of instances")
_STYLES = {
    "round_robin": ("tab:gray", "v"),
    "least_requests": ("tab:brown", "^"),
    "load": ("tab:red", "s"),
    "llumnix": ("tab:blue", "o"),
    "llumnix+": ("tab:green", "D"),
}


def plot_figure(path: Path, records: Sequence[Record]) -> None:
    """One row of plots per panel, one line per policy; dashed is what was published. Raises ConfigError."""
    if records[0]["figure"] == 15:
        _plot_cost(path, records)
        return
    panels = list(dict.fromkeys(record["panel"] for record in records))
    metrics = dict(_METRICS)
    if records[0]["figure"] == 14:
        metrics.update((_COST,))
    figure = Figure(figsize=(3.2 * len(metrics), 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), len(metrics), squeeze=False)
    for row, panel in zip(axes, panels, strict=True):
        shown = [record for record in records if record["panel"] == panel]
        for plot, (metric, label) in zip(row, metrics.items(), strict=True):
            _lines(plot, shown, "x", metric)
            plot.set(title=panel, xlabel="requests/s" if shown[0]["cv"] == 1 else "CV", ylabel=label)
    axes[0][0].legend(fontsize="small")
    _save(figure, path)


def _plot_cost(path: Path, records: Sequence[Record]) -> None:
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    _lines(axes, records, _COST[0], "prefill_p99_s")
    axes.set(xlabel=_COST[1], ylabel="prefill P99 (s)")
    axes.legend(fontsize="small")
    _save(figure, path)


def _lines(axes: Axes, records: Sequence[Record], x: str, y: str) -> None:
    for policy in dict.fromkeys(record["policy"] for record in records):
        colour, marker = _STYLES.get(policy.removesuffix("-base"), ("tab:purple", "o"))
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4}
        if policy.endswith("-base"):
            style["markerfacecolor"] = "white"
        own = sorted((r for r in records if r["policy"] == policy), key=lambda record: record[x])
        axes.plot([r[x] for r in own], [r[y] for r in own], label=policy, **style)
        # On an axis of results (Figure 15) the published position is another than ours.
        told = sorted(
            (r.get(f"published_{x}", r[x]), r[f"published_{y}"]) for r in own if f"published_{y}" in r
        )
        axes.plot([at for at, _ in told], [value for _, value in told], linestyle="--", alpha=0.5, **style)
    if y.startswith("prefill"):
        axes.set_yscale("log")
        _label_few(axes.yaxis)


def plot_runs(path: Path, runs: Sequence[RunResult]) -> None:
    """What share of the requests was served how fast under each policy, and how many instances there were."""
    figure = Figure(figsize=(14, 3.2), layout="constrained")
    prefill, decode, request, instances = figure.subplots(1, 4)
    for run in runs:
        colour, _ = _STYLES.get(run.setup.policy, ("tab:purple", "o"))
        style: dict[str, Any] = {"label": run.setup.policy, "color": colour}
        _distribution(prefill, [r.prefill_s for r in run.requests], style)
        _distribution(decode, [r.decode_s for r in run.requests if r.output_tokens > 1], style)
        _distribution(request, [r.latency_s for r in run.requests], style)
        times, counts = zip(*run.instance_counts, strict=True)
        instances.step([*times, max(run.duration_s, times[-1])], [*counts, counts[-1]], where="post", **style)
    for axes, name in ((prefill, "prefill (s)"), (decode, "decode (s/token)"), (request, "request (s)")):
        axes.set(xlabel=name, ylabel="share of requests", xscale="log")
        _label_few(axes.xaxis)
    instances.set(xlabel="time (s)", ylabel="instances", ylim=(0, None))
    prefill.legend(fontsize="small")
    _save(figure, path)


def _distribution(axes: Axes, values: Sequence[float], style: dict[str, Any]) -> None:
    axes.plot(np.sort(values), np.linspace(0, 1, len(values)), **style)


def _label_few(axis: Axis) -> None:
    """Plain numbers, three to a decade, on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): expected a writable file.") from None
