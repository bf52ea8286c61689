"""What moving running requests is worth: two real instances with small KV caches under skewed lengths.

llumnixd with its default policy, the same without rescheduling, and vLLM's own `--data-parallel-size 2` get
the same requests (lengths of the paper's trace M-M, Poisson arrivals), in turns, each started anew for every
repeat; nothing else may run on the machine. Printed: time to first token and preemptions.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from llumnix.engine import tiny_model
from llumnix.sim.records import SimRequest
from llumnix.sim.workloads import Workload
from tests.benchmarks import peer
from tests.e2e.running import RunningCluster, running, settings

MIGRATING, PLACING, VLLM = "llumnixd", "llumnixd, rescheduling off", "vLLM DP=2"
SIDES = (MIGRATING, PLACING, VLLM)
PREEMPTIONS = "vllm:num_preemptions"


@dataclass
class Side:
    """What was measured of one side, over all repeats."""

    ttft_s: list[list[float]] = field(default_factory=list)
    """Of every request, by repeat."""
    token_gap_s: list[float] = field(default_factory=list)
    """Of every request: its mean time per output token after the first."""
    preemptions: list[int] = field(default_factory=list)
    migrations: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Served:
    """A request's times."""

    ttft_s: float
    token_gap_s: float


def our_config(directory: Path, args: argparse.Namespace, *, rescheduling: bool) -> dict[str, object]:
    config = settings(directory / "state", engine=engine_options(args))
    config["scheduler"] = {"policy": args.policy, "rescheduling": rescheduling}
    del config["ray"]  # the tests' many logical cores
    return config


def engine_options(args: argparse.Namespace) -> dict[str, object]:
    return {**peer.ENGINE_OPTIONS, "kv_cache_memory_bytes": args.kv_mib * 1024**2}


@contextlib.contextmanager
def serving(
    side: str, model: str, directory: Path, args: argparse.Namespace
) -> Iterator[tuple[str, RunningCluster | None]]:
    """The URL of a side that is up, and the cluster if it is ours."""
    if side == VLLM:
        layout = peer.LAYOUTS["uni-pinned"]
        with peer.serving(model, directory, layout, num_engines=2, options=engine_options(args)) as theirs:
            yield theirs.url, None
    else:
        config = our_config(directory, args, rescheduling=side == MIGRATING)
        with running(config, directory) as cluster:
            yield cluster.url, cluster


async def play(url: str, requests: Sequence[SimRequest]) -> list[Served]:
    """Send each request at its time; all answers. Raises httpx.HTTPError if one fails."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as http:
        begun = time.monotonic()
        return list(await asyncio.gather(*(_play_one(http, request, begun) for request in requests)))


async def _play_one(http: httpx.AsyncClient, request: SimRequest, begun: float) -> Served:
    body = {
        "model": peer.SERVED_NAME,
        "prompt": _prompt(request),
        "max_tokens": request.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    await asyncio.sleep(begun + request.arrival_s - time.monotonic())
    sent, first, last = time.monotonic(), 0.0, 0.0
    async with http.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                last = time.monotonic()
                first = first or last
                if '"error"' in line:
                    raise httpx.HTTPError(line)
    return Served(first - sent, (last - first) / max(request.output_tokens - 1, 1))


def _prompt(request: SimRequest) -> list[int]:
    """Token ids that no other request shares a prefix with."""
    rng = random.Random(request.id)
    return [rng.randrange(300, tiny_model.VOCAB_SIZE) for _ in range(request.prompt_tokens)]


def preemptions_of(url: str) -> int:
    text = httpx.get(f"{url}/metrics", timeout=30).text
    families = (f for f in text_string_to_metric_families(text) if f.name == PREEMPTIONS)
    return int(sum(s.value for f in families for s in f.samples if s.name.endswith("_total")))


def measure_all(args: argparse.Namespace, directory: Path, console: Console) -> dict[str, Side]:
    model = str(tiny_model.build(directory / "state"))
    sides = {name: Side() for name in SIDES}
    for repeat in range(args.repeats):
        trace = Workload(args.trace, args.requests, args.rate, seed=repeat, longest=args.longest)
        requests = trace.build()
        for name in SIDES[repeat % 3 :] + SIDES[: repeat % 3]:
            of_run = directory / f"{repeat}-{SIDES.index(name)}"
            with serving(name, model, of_run, args) as (url, cluster):
                served = asyncio.run(play(url, requests))
                side = sides[name]
                side.ttft_s.append([one.ttft_s for one in served])
                side.token_gap_s += [one.token_gap_s for one in served]
                side.preemptions.append(preemptions_of(url))
                side.migrations.append(_migrations(cluster))
            console.print(
                f"{repeat + 1} {name:28} TTFT p50 {peer.percentile(side.ttft_s[-1], 50):.3f} "
                f"p99 {peer.percentile(side.ttft_s[-1], 99):.3f} s, {side.preemptions[-1]} preemptions, "
                f"{side.migrations[-1]} migrations"
            )
    return sides


def _migrations(cluster: RunningCluster | None) -> int:
    return cluster.admin("GET", "/v1/cluster")["totals"]["migrations_committed"] if cluster else 0


def report(sides: dict[str, Side], args: argparse.Namespace, console: Console) -> None:
    table = Table(
        title=f"{args.requests} requests of {args.trace} at {args.rate:g}/s, {args.repeats} repeats"
    )
    headings = (
        "",
        "TTFT mean s",
        "p50",
        "p99 (median of repeats)",
        "token gap p99 ms",
        "preemptions",
        "moves",
    )
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    p99 = {}
    for name, side in sides.items():
        every = [value for of_run in side.ttft_s for value in of_run]
        p99[name] = statistics.median(peer.percentile(of_run, 99) for of_run in side.ttft_s)
        table.add_row(
            name,
            f"{statistics.mean(every):.3f}",
            f"{peer.percentile(every, 50):.3f}",
            f"{p99[name]:.3f}",
            f"{1e3 * peer.percentile(side.token_gap_s, 99):.1f}",
            f"{statistics.median(side.preemptions):g}",
            f"{statistics.median(side.migrations):g}",
        )
    console.print(table)
    for other in (PLACING, VLLM):
        ours, theirs = sum(sides[MIGRATING].preemptions), sum(sides[other].preemptions)
        console.print(
            f"P99 TTFT to {other}: {peer.verdict(p99[MIGRATING] / p99[other], 1.0, at_least=False)}; "
            f"preemptions {ours} to {theirs}"
        )


def main() -> None:
    parser = peer.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="starts of each side (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=300, help="of a run (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=6.0, help="requests per second (default: %(default)s)")
    parser.add_argument("--trace", default="M-M", help="of llumnix-sim's lengths (default: %(default)s)")
    parser.add_argument(
        "--longest", type=int, default=6000, help="tokens of a request (default: %(default)s)"
    )
    parser.add_argument("--kv-mib", type=int, default=48, help="of an instance (default: %(default)s)")
    parser.add_argument("--policy", default="llumnix+", help="of llumnixd (default: %(default)s)")
    args = parser.parse_args()
    peer.unwind_on_sigterm()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        sides = measure_all(args, Path(directory), console)
    report(sides, args, console)
    peer.write_json(args.json, {name: asdict(side) for name, side in sides.items()})


if __name__ == "__main__":
    main()
