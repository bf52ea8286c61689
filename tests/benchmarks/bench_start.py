"""Seconds from the start of llumnixd to ready (two instances) against one `vllm serve` to healthy.

Everything is installed and the model is built before; the sides are started in turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llumnix.engine import tiny_model
from tests.benchmarks import peer
from tests.e2e.running import RunningCluster, running

BAR = 1.5
# Kinds of the journal's events (the last of a kind counts), and what has happened by then.
MILESTONES = {
    "daemon.started": "llumnixd has read its configuration",
    "instance.added": "Ray runs, the admin API answers",
    "instance.placed": "both instances' processes are there",
    "instance.ready": "both engines are up",
    "apiserver.ready": "the API server answers HTTP",
}


def start_ours(directory: Path) -> tuple[float, dict[str, float]]:
    """Seconds until ready, and until each milestone."""
    started_unix_s, started = time.time(), time.monotonic()
    with running(peer.our_config(directory / "state"), directory / "llumnix") as cluster:
        seconds = time.monotonic() - started
        return seconds, _milestones(cluster, started_unix_s)


def _milestones(cluster: RunningCluster, started_unix_s: float) -> dict[str, float]:
    """From the journal, which holds earlier runs too: the last event of each kind is of this one."""
    events = cluster.admin("GET", "/v1/events?limit=1000")["items"]
    at_s = {e["kind"]: e["time"] - started_unix_s for e in sorted(events, key=lambda e: e["seq"])}
    return {kind: at_s[kind] for kind in MILESTONES}


def start_theirs(model: str, directory: Path, layout: str) -> float:
    """Seconds until healthy."""
    started = time.monotonic()
    with peer.serving(model, directory / "vllm", peer.LAYOUTS[layout], num_engines=1):
        return time.monotonic() - started


def report(
    ours_s: list[float], theirs_s: list[float], milestones: list[dict[str, float]], console: Console
) -> float:
    """Prints the tables and the last line; returns the ratio, ours to theirs."""
    table = Table(title="seconds since llumnixd was started, medians")
    for heading in ("event", "meaning", "at", "since the one before"):
        table.add_column(heading, justify="right" if heading in ("at", "since the one before") else "left")
    medians = {kind: statistics.median(m[kind] for m in milestones) for kind in MILESTONES}
    before_s = 0.0
    for kind, at_s in sorted(medians.items(), key=lambda item: item[1]):
        table.add_row(kind, MILESTONES[kind], f"{at_s:.1f}", f"{at_s - before_s:.1f}")
        before_s = at_s
    console.print(table)
    for name, seconds in (("llumnixd", ours_s), ("vllm serve", theirs_s)):
        console.print(f"{name:12}" + " ".join(f"{value:6.1f}" for value in seconds))
    ours, theirs = statistics.median(ours_s), statistics.median(theirs_s)
    ratio = ours / theirs
    console.print(f"ready after {ours:.1f} / {theirs:.1f} s = {peer.verdict(ratio, BAR, at_least=False)}")
    return ratio


def main() -> None:
    parser = peer.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="starts of each side (default: %(default)s)")
    parser.add_argument("--layout", choices=peer.LAYOUTS, default="uni", help="vLLM's processes")
    args = parser.parse_args()
    peer.unwind_on_sigterm()
    console = Console(highlight=False)
    ours_s, theirs_s, milestones = [], [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        model = str(tiny_model.build(directory / "state"))
        for repeat in range(args.repeats):
            for ours in (True, False) if repeat % 2 == 0 else (False, True):
                if ours:
                    seconds, at = start_ours(directory)
                    ours_s.append(seconds)
                    milestones.append(at)
                else:
                    theirs_s.append(start_theirs(model, directory, args.layout))
    ratio = report(ours_s, theirs_s, milestones, console)
    result = {"ratio": ratio, "llumnixd_s": ours_s, "vllm_serve_s": theirs_s, "milestones_s": milestones}
    peer.write_json(args.json, result)


if __name__ == "__main__":
    main()
