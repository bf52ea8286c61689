"""Throughput and time to first token of two instances behind llumnixd against vLLM's own data parallelism.

Both sides are started anew for every repeat, in turns (ours first, then theirs first), with the same engine
options, and loaded by `vllm bench serve` with the same seeds; nothing else may run on the machine. Five
repeats take about eleven minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from llumnix.engine import tiny_model
from tests.benchmarks import peer
from tests.benchmarks.peer import Load
from tests.e2e.running import running

THROUGHPUT_BAR = 0.95
TTFT_BAR = 1.1
TTFT_RATE_PER_S = 20.0
IDLE_SAMPLE_S = 3.0
SIDES = ("llumnix", "vllm")


@dataclass
class Side:
    """What was measured of one side; times in ms."""

    requests_per_s: list[float] = field(default_factory=list)
    cpu_ms_per_request: list[float] = field(default_factory=list)
    """Of the serving processes under full load, without what they use while the load generator starts."""
    idle_percent: list[float] = field(default_factory=list)
    """Of one core, of all serving processes together, before each run."""
    ttft_ms: list[float] = field(default_factory=list)
    """Of every request of all runs at TTFT_RATE_PER_S."""
    run_ttft_medians_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Server:
    """A side that is up: where, and the processes that serve (not those of the load generator)."""

    url: str
    processes: list[psutil.Process]


@contextlib.contextmanager
def served(side: str, layout: str, model: str, directory: Path) -> Iterator[Server]:
    if side == "llumnix":
        with running(peer.our_config(directory / "state"), directory / side) as cluster:
            yield Server(cluster.url, [psutil.Process(cluster.process.pid), *cluster.processes()])
    else:
        with peer.serving(model, directory / side, peer.LAYOUTS[layout], num_engines=2) as theirs:
            yield Server(theirs.url, theirs.processes())


def measure(
    server: Server, model: str, directory: Path, seed: int, args: argparse.Namespace, side: Side
) -> None:
    """One run of each load against a server."""
    idle_share = _idle_share(server)
    before_s, started = peer.cpu_seconds(server.processes), time.monotonic()
    # Another seed each time, or every prompt would be in the prefix cache.
    full = Load(args.prompts, max_concurrency=args.concurrency, seed=2 * seed)
    result = peer.bench(server.url, model, directory, full)
    waited_s = time.monotonic() - started - result["duration"]
    used_s = peer.cpu_seconds(server.processes) - before_s - idle_share * waited_s
    side.requests_per_s.append(result["request_throughput"])
    side.idle_percent.append(100 * idle_share)
    side.cpu_ms_per_request.append(1e3 * used_s / (full.num_prompts + full.num_warmups))
    paced = Load(args.ttft_prompts, request_rate=TTFT_RATE_PER_S, seed=2 * seed + 1)
    ttft_ms = [1e3 * seconds for seconds in peer.bench(server.url, model, directory, paced)["ttfts"]]
    side.ttft_ms += ttft_ms
    side.run_ttft_medians_ms.append(statistics.median(ttft_ms))


def _idle_share(server: Server) -> float:
    before_s = peer.cpu_seconds(server.processes)
    time.sleep(IDLE_SAMPLE_S)
    return (peer.cpu_seconds(server.processes) - before_s) / IDLE_SAMPLE_S


def measure_all(args: argparse.Namespace, directory: Path, console: Console) -> dict[str, Side]:
    model = str(tiny_model.build(directory / "state"))
    sides = {name: Side() for name in SIDES}
    for repeat in range(args.repeats):
        for name in SIDES if repeat % 2 == 0 else SIDES[::-1]:
            with served(name, args.layout, model, directory) as server:
                for run in range(args.runs):
                    measure(server, model, directory, repeat * args.runs + run, args, sides[name])
                    side = sides[name]
                    console.print(
                        f"{repeat + 1}.{run + 1} {name:8}{side.requests_per_s[-1]:7.1f} req/s, "
                        f"TTFT median {side.run_ttft_medians_ms[-1]:.1f} ms"
                    )
    return sides


def report(sides: dict[str, Side], layout: str, console: Console) -> dict[str, float]:
    """Prints the table and the last line; returns the ratios, ours to theirs."""
    table = Table(title=f"two instances behind llumnixd, and vllm serve --data-parallel-size 2 ({layout})")
    for heading in ("", "req/s of each run", "median", "CPU ms/req", "idle %", "TTFT p50 ms", "TTFT p99 ms"):
        table.add_column(heading, justify="left" if heading in ("", "req/s of each run") else "right")
    figures = {name: _figures(side) for name, side in sides.items()}
    for name, side in sides.items():
        runs = " ".join(f"{value:.1f}" for value in side.requests_per_s)
        table.add_row(name, runs, *(f"{value:.1f}" for value in figures[name].values()))
    console.print(table)
    ours, theirs = figures["llumnix"], figures["vllm"]
    ratios = {key: ours[key] / theirs[key] for key in ours if key != "idle_percent"}  # may be 0
    console.print(f"of run and run: {_of_each_run(sides)}", soft_wrap=True)
    console.print(
        f"throughput {ours['requests_per_s']:.1f} / {theirs['requests_per_s']:.1f} req/s = "
        f"{peer.verdict(ratios['requests_per_s'], THROUGHPUT_BAR, at_least=True)}; "
        f"TTFT p50 {ours['ttft_p50_ms']:.1f} / {theirs['ttft_p50_ms']:.1f} ms = "
        f"{peer.verdict(ratios['ttft_p50_ms'], TTFT_BAR, at_least=False)}; "
        f"p99 {ours['ttft_p99_ms']:.1f} / {theirs['ttft_p99_ms']:.1f} ms = "
        f"{peer.verdict(ratios['ttft_p99_ms'], TTFT_BAR, at_least=False)}",
        soft_wrap=True,
    )
    return ratios


def _of_each_run(sides: dict[str, Side]) -> str:
    """Lowest, middle and highest ratio of two runs that followed each other, ours to theirs."""
    ours, theirs = (sides[name] for name in SIDES)
    spreads = []
    for what, mine, other in (
        ("throughput", ours.requests_per_s, theirs.requests_per_s),
        ("CPU per request", ours.cpu_ms_per_request, theirs.cpu_ms_per_request),
        ("TTFT p50", ours.run_ttft_medians_ms, theirs.run_ttft_medians_ms),
    ):
        ratios = [a / b for a, b in zip(mine, other, strict=True)]
        spreads.append(f"{what} {min(ratios):.2f} .. {statistics.median(ratios):.2f} .. {max(ratios):.2f}")
    return ", ".join(spreads)


def _figures(side: Side) -> dict[str, float]:
    return {
        "requests_per_s": statistics.median(side.requests_per_s),
        "cpu_ms_per_request": statistics.median(side.cpu_ms_per_request),
        "idle_percent": statistics.median(side.idle_percent),
        "ttft_p50_ms": peer.percentile(side.ttft_ms, 50),
        "ttft_p99_ms": peer.percentile(side.ttft_ms, 99),
    }


def main() -> None:
    parser = peer.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="starts of each side (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=1, help="runs per start (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=600, help="of a throughput run (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=64, help="of it (default: %(default)s)")
    parser.add_argument("--ttft-prompts", type=int, default=200, help="of a TTFT run (default: %(default)s)")
    parser.add_argument("--layout", choices=peer.LAYOUTS, default="uni-pinned", help="vLLM's processes")
    args = parser.parse_args()
    peer.unwind_on_sigterm()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        sides = measure_all(args, Path(directory), console)
    ratios = report(sides, args.layout, console)
    peer.write_json(args.json, {"ratios": ratios, **{name: asdict(side) for name, side in sides.items()}})


if __name__ == "__main__":
    main()
