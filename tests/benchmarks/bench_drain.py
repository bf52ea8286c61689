"""Draining an instance with 30 running requests: how long it takes, and that no client notices.

python -m tests.benchmarks.bench_drain [--repeats 3] [--requests 30] [--prompt 1000] [--tokens 2000]
Bar: 0 failed, no token different, done within (bytes moved / bandwidth measured in the same run) + 2 s.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from typing import Any

from tests.benchmarks.live import Client, body, on_cluster, prompt, verdict

EXTRA_S = 2.0


async def drain_once(client: Client, args: argparse.Namespace, rng: random.Random) -> bool:
    requests = [body(prompt(args.prompt, rng), args.tokens) for _ in range(args.requests)]
    await client.admin("POST", "/v1/instances/i1/cordon")
    await client.until(lambda: state_is(client, "i1", "cordoned"), 10, "i1 is cordoned")
    streams = [client.stream(request) for request in requests]
    for stream in streams:
        await stream.reached(10)
    await client.admin("POST", "/v1/instances/i1/uncordon")
    await client.until(lambda: state_is(client, "i1", "running"), 10, "i1 is open again")
    known = {m["id"] for m in await migrations(client)}
    began = time.time()
    await client.admin("POST", "/v1/instances/i0/drain", json={"timeout_s": 120})

    async def safe() -> bool:
        return bool((await client.instances())["i0"]["safe_to_remove"])

    await client.until(safe, 150, "i0 is safe to remove")
    took_s = time.time() - began
    num_over = sum(stream.is_over for stream in streams)
    moved = [m for m in await migrations(client) if m["id"] not in known]
    await asyncio.gather(*(stream.ended() for stream in streams))
    await client.admin("POST", "/v1/instances/i0/uncordon")
    await client.until_serving(["i0", "i1"])
    again = await client.answers(requests)
    failed = [s.error for s in streams if s.error is not None]
    wrong = sum(a.answer != b.answer for a, b in zip(streams, again, strict=True) if a.error is None)
    return report(took_s, moved, num_over, failed, wrong)


async def state_is(client: Client, instance: str, state: str) -> bool:
    return bool((await client.instances())[instance]["state"] == state)


async def migrations(client: Client) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await client.admin("GET", "/v1/migrations?limit=1000"))["items"]
    return listed


def report(took_s: float, moved: list[dict[str, Any]], num_over: int, failed: list[str], wrong: int) -> bool:
    committed = [m for m in moved if m["state"] == "committed"]
    num_bytes = sum(m["bytes"] for m in moved)
    bandwidth = num_bytes / max(1e-9, sum(m["copy_ms"] for m in moved) / 1e3)
    bar_s = num_bytes / max(1.0, bandwidth) + EXTRA_S
    holds = took_s <= bar_s and not failed and not wrong
    print(
        f"drained in {took_s:.2f} s: {len(committed)} of {len(moved)} migrations committed, "
        f"{num_over} requests ended by themselves, {num_bytes / 1e6:.1f} MB at {bandwidth / 1e6:.0f} MB/s; "
        f"bar {bar_s:.2f} s; failed {len(failed)}, wrong {wrong}: {verdict(holds)}",
        flush=True,
    )
    for why in {m["why"] for m in moved if m["state"] != "committed"} | set(failed):
        print("  ", why)
    return holds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--prompt", type=int, default=1_000, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=2_000, help="of each request's output")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    async def run(client: Client) -> None:
        rng = random.Random(args.seed)
        held = [await drain_once(client, args, rng) for _ in range(args.repeats)]
        print(f"{sum(held)} of {len(held)} drains within the bar: {verdict(all(held))}")

    on_cluster(run, 2, engine={"max_num_seqs": 64})


if __name__ == "__main__":
    main()
