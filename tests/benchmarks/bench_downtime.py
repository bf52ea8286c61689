"""The gap between two tokens that a client sees when its request moves, by the length of the request.

python -m tests.benchmarks.bench_downtime [--repeats 30] [--lengths 256 512 ...] [--parts decoding ...]
Beside it: the same stream's usual gaps, the gap with a blocking copy (everything after the request has
stopped) and the time to recompute it (to the first token of a fresh prompt of that length), all under the
same load; apart, with prefills going on at the target; and how one migration per second slows the batch.
"after" is the stream's usual gap once it has moved: at a target that prefills, every step takes that long.
Bars: the gap is at most the usual one + max(2 decode steps, 20 ms); batch-mates lose at most 5 %.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.benchmarks.live import POLL_S, Client, Refused, Stream, body, on_cluster, prompt, verdict

LENGTHS = [256, 512, 1024, 2048, 4096, 7500]
NUM_MATES = 4
"""Streams that run beside the one that moves, on both instances together."""
MAX_LEN = 8192
BEFORE, AFTER = 60, 6
"""Tokens that are watched before the move, and after it."""
NUM_COMPARISONS = 12
"""Of phases with and without migrations."""
PARTS = ["decoding", "prefilling", "mates", "alternatives"]
BLOCKING = {"last_stage_blocks": 1_000_000}


@dataclass
class Gaps:
    """In ms, one entry a sample."""

    handover: list[float] = field(default_factory=list)
    usual: list[float] = field(default_factory=list)
    downtime: list[float] = field(default_factory=list)
    """As the source measured it, from freeze to ACCEPTED."""
    recompute: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    def bar_ms(self) -> float:
        usual = statistics.median(self.usual)
        return usual + max(2 * usual, 20.0)


async def sample(client: Client, num_tokens: int, rng: random.Random, gaps: Gaps) -> None:
    """Move one fresh request of `num_tokens`, and add what its client saw."""
    asked_at = time.time()
    request = body(prompt(num_tokens - BEFORE, rng), min(2_000, MAX_LEN - num_tokens + BEFORE))
    stream = client.stream(request)
    try:
        await stream.reached(BEFORE)
        asked, migration = await client.move_once_listed(stream)
        if migration["state"] != "committed":
            raise Refused(migration["why"])
        await stream.reached(len(stream.at) + AFTER)
    finally:
        await stream.leave()
    gaps.recompute.append(1e3 * (stream.at[0] - asked_at))
    gaps.usual.append(statistics.median(stream.gaps_ms(stream.at[5], asked)))
    gaps.handover.append(max(stream.gaps_ms(asked, migration["ended_at"] + 0.02)))
    gaps.downtime.append(migration["downtime_ms"])
    gaps.after.append(statistics.median(stream.gaps_ms()[-AFTER + 1 :]))


async def samples(client: Client, num_tokens: int, count: int, rng: random.Random) -> Gaps:
    gaps, num_refused = Gaps(), 0
    while len(gaps.handover) < count:
        try:
            await sample(client, num_tokens, rng, gaps)
        except Refused as refused:
            num_refused += 1
            if num_refused > count:
                raise AssertionError(f"too many migrations are refused: {refused}") from None
    return gaps


@contextlib.asynccontextmanager
async def mates(client: Client, rng: random.Random, count: int = NUM_MATES) -> AsyncIterator[list[Stream]]:
    """`count` streams that decode all the time; each is begun anew when it ends."""
    streams: list[Stream] = []

    async def one(k: int) -> None:
        while True:
            stream = client.stream(body(prompt(100, rng), 6_000))
            streams.append(stream)
            try:
                await stream.ended()
            finally:
                await stream.leave()

    tasks = [asyncio.create_task(one(k)) for k in range(count)]
    try:
        while len(streams) < count or not all(stream.at for stream in streams):
            await asyncio.sleep(POLL_S)
        yield streams
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def prefills(client: Client, rng: random.Random) -> AsyncIterator[None]:
    """Two long prompts after two others: the dispatcher spreads them, so that both instances prefill."""

    async def one() -> None:
        while True:
            await client.stream(body(prompt(6_000, rng), 1)).ended()

    tasks = [asyncio.create_task(one()) for _ in range(2)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def row(num_tokens: int, gaps: Gaps) -> str:
    handover, usual = statistics.median(gaps.handover), statistics.median(gaps.usual)
    worst = sorted(gaps.handover)[int(0.9 * (len(gaps.handover) - 1))]
    at_source, after = statistics.median(gaps.downtime), statistics.median(gaps.after)
    bar = gaps.bar_ms()
    return (
        f"{num_tokens:>7}{len(gaps.handover):>5}{usual:>9.1f}{handover:>10.1f}{worst:>8.1f}"
        f"{at_source:>10.1f}{after:>8.1f}{bar:>8.1f}  {verdict(handover <= bar)}"
    )


HEADINGS = (
    f"{'tokens':>7}{'n':>5}{'usual':>9}{'handover':>10}{'p90':>8}{'at source':>10}{'after':>8}{'bar':>8}"
    "  (ms, medians)"
)


async def decoding(client: Client, args: argparse.Namespace) -> dict[int, Gaps]:
    rng = random.Random(args.seed)
    result = {}
    async with mates(client, rng):
        print(f"target decoding, {NUM_MATES} batch-mates\n{HEADINGS}")
        for num_tokens in args.lengths:
            result[num_tokens] = await samples(client, num_tokens, args.repeats, rng)
            print(row(num_tokens, result[num_tokens]), flush=True)
    return result


async def prefilling(client: Client, args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    async with mates(client, rng, 2), prefills(client, rng):
        print(f"target prefilling\n{HEADINGS}")
        for num_tokens in args.lengths[-3:]:
            print(row(num_tokens, await samples(client, num_tokens, args.repeats, rng)), flush=True)


async def slow_down(client: Client, args: argparse.Namespace) -> None:
    """Batch-mates' tokens per second with one migration a second and without.

    Each comparison is of four neighbouring phases, without, with, with, without: the streams grow longer all
    the time, and slower by it.
    """
    rng = random.Random(args.seed)
    phase_s = args.mates_s / (4 * NUM_COMPARISONS)
    losses: list[float] = []
    num_moves = num_tokens = 0
    async with mates(client, rng, 8) as streams:
        for _ in range(NUM_COMPARISONS):
            guest = client.stream(body(prompt(1_000, rng), 6_000))
            await guest.reached(20)
            await client.until(lambda guest=guest: client.rows(guest), 30, "the guest is listed")
            rates: dict[bool, list[float]] = {True: [], False: []}
            for moves in (False, True, True, False):
                before, began = sum(len(stream.at) for stream in streams), time.monotonic()
                await one_phase(client, guest if moves else None, phase_s)
                made = sum(len(stream.at) for stream in streams) - before
                rates[moves].append(made / (time.monotonic() - began))
                num_tokens += made
            num_moves += (await client.rows(guest))[0]["migrations"]
            await guest.leave()
            losses.append(1 - sum(rates[True]) / sum(rates[False]))
    loss = statistics.median(losses)
    print(f"batch-mates: {num_tokens / args.mates_s:.0f} tokens/s, {num_moves} migrations")
    print(
        f"{loss:+.1%} slower with one migration a second (median of {NUM_COMPARISONS} comparisons of "
        f"4 x {phase_s:.0f} s), {verdict(loss <= 0.05)}"
    )
    print("comparisons: " + " ".join(f"{one:+.1%}" for one in sorted(losses)))


async def one_phase(client: Client, guest: Stream | None, seconds: float) -> None:
    """Let time pass, and `guest` move each second; nobody asks what became of it, which would cost a step."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if guest is not None:
            with contextlib.suppress(Refused):
                await client.admin("POST", f"/v1/requests/{guest.response_id}/migrate", json={})
        await asyncio.sleep(min(1.0, left))


async def blocking(client: Client, args: argparse.Namespace, live: dict[int, Gaps]) -> None:
    rng = random.Random(args.seed)
    print("the alternatives, ms (medians) and their ratio to live migration's handover gap")
    print(f"{'tokens':>7}{'live':>9}{'blocking copy':>16}{'ratio':>8}{'recompute':>12}{'ratio':>8}")
    async with mates(client, rng):
        for num_tokens, gaps in live.items():
            copied = statistics.median((await samples(client, num_tokens, args.repeats, rng)).handover)
            gap, again = statistics.median(gaps.handover), statistics.median(gaps.recompute)
            line = f"{num_tokens:>7}{gap:>9.1f}{copied:>16.1f}{copied / gap:>8.1f}"
            print(f"{line}{again:>12.1f}{again / gap:>8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30, help="samples of each length")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--mates-s", type=float, default=240.0, help="length of the slow-down")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    live: dict[int, Gaps] = {}

    async def first(client: Client) -> None:
        if {"decoding", "alternatives"} & set(args.parts):
            live.update(await decoding(client, args))
        if "prefilling" in args.parts:
            await prefilling(client, args)
        if "mates" in args.parts:
            await slow_down(client, args)

    on_cluster(first, 2)
    if "alternatives" in args.parts:
        on_cluster(lambda client: blocking(client, args, live), 2, migration=BLOCKING)


if __name__ == "__main__":
    main()
