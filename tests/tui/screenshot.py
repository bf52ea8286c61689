"""Print an SVG screenshot of llumnix-tui: `python -m tests.tui.screenshot > tui/screenshot.svg`.

Starts the 16 simulated instances of configs/simulated.toml (about 7 GiB of memory, some minutes), loads
them with requests of very different lengths and priorities through the OpenAI endpoint, and takes the picture
once requests have been moved. What the cluster did meanwhile goes to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import typer

from llumnix_tui.app import LlumnixApp
from llumnix_tui.client import AdminClient
from llumnix_tui.source import LiveSource
from tests.e2e.running import RunningCluster, free_port, launch

REPO = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 900.0
MAX_WATCH_S = 400.0
# Prompts and answers of a few tokens to thousands: most are short, few hold most of the memory.
PROMPT_TOKENS, OUTPUT_TOKENS, SHAPE, MOST_TOKENS = 60, 60, 1.1, 3000
SHARE_HIGH = 0.04
TOKEN_ID = 5


def main(
    clients: int = 120, watch_s: float = 90.0, moves: int = 30, width: int = 120, height: int = 40
) -> None:
    """Load the cluster by so many clients, for at least watch_s and until so many moves; print it."""
    with tempfile.TemporaryDirectory(prefix="llumnix-picture-") as place:
        began = time.monotonic()
        cluster = launch(settings(Path(place)), Path(place))
        try:
            cluster.wait_ready(START_TIMEOUT_S)
            tell(f"{len(cluster.instances())} instances serve after {time.monotonic() - began:.0f} s")
            picture, report = asyncio.run(watch(cluster, clients, watch_s, moves, (width, height)))
            cluster.stop()
        finally:
            cluster.end()
    tell(report)
    typer.echo(picture)


def settings(place: Path) -> dict[str, Any]:
    """configs/simulated.toml with ports and a state of its own."""
    config: dict[str, Any] = tomllib.loads((REPO / "configs/simulated.toml").read_text())
    config["cluster"] = {"name": "simulated", "state_dir": str(place / "state")}
    config["http"] = {"port": free_port(), "drain_timeout_s": 1.0}
    config["admin"] = {"port": free_port()}
    return config


async def watch(
    cluster: RunningCluster, clients: int, watch_s: float, moves: int, size: tuple[int, int]
) -> tuple[str, str]:
    """Return the terminal interface's screen as SVG once there is something to see, and what there was."""
    token = (cluster.state_dir / "admin.token").read_text().strip()
    source = LiveSource(AdminClient(cluster.admin_url, token))
    app = LlumnixApp(source)
    try:
        async with loaded(cluster.url, clients) as ended, app.run_test(size=size):
            began, cpu_before_s = time.monotonic(), cpu_s(cluster)
            while (passed_s := time.monotonic() - began) < MAX_WATCH_S:
                await asyncio.sleep(1)
                seen = app.store.snapshot
                if seen and seen.cluster.totals.migrations_committed >= moves and passed_s >= watch_s:
                    break
            speeds = app.store.history.cluster.tokens_per_s
            assert seen is not None
            report = (
                f"{clients} clients for {passed_s:.0f} s: answers by status {dict(ended)};"
                f" {sum(speeds) / len(speeds):.0f} tokens/s on average, {max(speeds):.0f} at most;"
                f" {seen.cluster.totals.migrations_committed} migrations committed,"
                f" {seen.cluster.totals.migrations_aborted} aborted;"
                f" {(cpu_s(cluster) - cpu_before_s) / passed_s:.2f} cores used by the cluster"
            )
            return app.export_screenshot(title="llumnix-tui"), report
    finally:
        await source.close()


@contextlib.asynccontextmanager
async def loaded(url: str, clients: int) -> AsyncIterator[Counter[str]]:
    """So many clients, each with one request after the other; yields how many answers had which status."""
    ended = Counter[str]()
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as http:
        tasks = [asyncio.create_task(ask(http, random.Random(number), ended)) for number in range(clients)]
        yield ended
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(http: httpx.AsyncClient, chance: random.Random, ended: Counter[str]) -> None:
    """Send requests, one after the other, until cancelled."""
    while True:
        body = {
            "model": "tiny",
            "prompt": [TOKEN_ID] * tokens(chance, PROMPT_TOKENS),
            "max_tokens": tokens(chance, OUTPUT_TOKENS),
            "ignore_eos": True,
        }
        priority = "high" if chance.random() < SHARE_HIGH else "normal"
        answer = await http.post("/v1/completions", json=body, headers={"X-Llumnix-Priority": priority})
        ended[str(answer.status_code)] += 1


def tokens(chance: random.Random, least: int) -> int:
    """Return a length from a heavy-tailed distribution."""
    return min(int(least * chance.paretovariate(SHAPE)), MOST_TOKENS)


def cpu_s(cluster: RunningCluster) -> float:
    """Return the CPU time that the cluster's processes have used."""
    found = [cluster.process.pid, *(process.pid for process in cluster.processes())]
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in found)


def tell(text: str) -> None:
    """Say how it goes, beside the picture."""
    typer.echo(text, err=True)


if __name__ == "__main__":
    typer.run(main)
