"""The points of the paper's Figures 11, 13, 14 and 15 (figures.csv), under our names."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

POLICY_OF_SYSTEM = {
    "INFaaS++": "load",
    "Llumnix": "llumnix",
    "Llumnix-base": "llumnix-base",
    "Round-Robin": "round_robin",
}
_METRICS = {
    "preMean": "prefill_mean_s",
    "preP99": "prefill_p99_s",
    "decMean": "decode_mean_s",
    "decP99": "decode_p99_s",
    "reqMean": "request_mean_s",
    "reqP99": "request_p99_s",
    "loss": "preemption_loss_s",
    "avgInst": "average_instances",
}

Values = Mapping[str, float]
"""By metric (a field of Metrics)."""


@cache
def points() -> Mapping[tuple[int, str], Mapping[float, Mapping[str, Values]]]:
    """By (figure, panel), by x, by policy. Figure 15 has x 0: its points are told apart by panel."""
    found: dict[tuple[int, str], dict[float, dict[str, dict[str, float]]]]
    found = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    text = (files("llumnix.sim") / "figures.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        panel = found[int(row["figure"]), row["panel"]]
        policy, x, y = POLICY_OF_SYSTEM[row["system"]], float(row["x"]), float(row["y"])
        if row["metric"] == "preP99_vs_avgInst":
            panel[0.0][policy] = {"average_instances": x, "prefill_p99_s": y}
        elif metric := _METRICS.get(row["metric"]):
            panel[x][policy][metric] = y
    return found
