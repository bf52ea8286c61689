"""kill -9 of one of three instances under 60 streams, again and again; then of one of two API servers.

python -m tests.benchmarks.bench_kill [--repeats 20] [--requests 60] [--tokens 400]
Bars: no request fails, no token differs from an undisturbed run (greedy, float32), and the longest stall is
at most 3 s plus the recompute's own time. Of a killed API server only its own connections end.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from dataclasses import dataclass, field

import psutil

from tests.benchmarks.live import Client, Stream, body, on_cluster, prompt, verdict

INSTANCES = ["i0", "i1", "i2"]
STALL_BAR_S = 3.0
PROMPT_TOKENS = 300


@dataclass
class Tally:
    failed: list[str] = field(default_factory=list)
    wrong: int = 0
    stalls_s: list[float] = field(default_factory=list)
    """The longest gap of each round."""
    undisturbed_s: float = 0.0
    """The longest gap of the run that nobody disturbs, without its first tokens."""


def longest_gap_s(streams: list[Stream]) -> float:
    return max((gap for stream in streams for gap in stream.gaps_ms()), default=0.0) / 1e3


def judge(expected: list[Stream], got: list[Stream], tally: Tally) -> None:
    for want, stream in zip(expected, got, strict=True):
        if stream.error is not None:
            tally.failed.append(stream.error)
        elif stream.answer != want.answer:
            tally.wrong += 1
    tally.stalls_s.append(longest_gap_s(got))


async def recompute_s(client: Client, rng: random.Random, tokens: int) -> float:
    """The time to the first token of 30 fresh requests at once, as long as a dead instance's are by then."""
    requests = [body(prompt(PROMPT_TOKENS + tokens // 2, rng), 1) for _ in range(30)]
    began = asyncio.get_running_loop().time()
    await client.answers(requests)
    return asyncio.get_running_loop().time() - began


async def kill_instances(client: Client, args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    requests = [body(prompt(PROMPT_TOKENS, rng), args.tokens) for _ in range(args.requests)]
    tally = Tally()
    expected = await client.answers(requests)
    assert all(stream.error is None for stream in expected), [s.error for s in expected if s.error]
    tally.undisturbed_s = longest_gap_s(expected)
    recompute = await recompute_s(client, rng, args.tokens)
    for n in range(args.repeats):
        got = [client.stream(request) for request in requests]
        at = rng.randint(2, max(3, args.tokens // 2))
        await got[rng.randrange(len(got))].reached(at)
        victim = rng.choice(INSTANCES)
        psutil.Process((await client.instances())[victim]["pid"]).kill()
        judge(expected, list(await asyncio.gather(*(stream.ended() for stream in got))), tally)
        print(
            f"{n + 1:>3}: {victim} after {at} tokens; longest stall {tally.stalls_s[-1]:.2f} s; "
            f"failed {len(tally.failed)}, wrong {tally.wrong} so far",
            flush=True,
        )
        await asyncio.sleep(1)  # the manager has noticed
        await client.until_serving(INSTANCES)
    report(tally, args, recompute)


def report(tally: Tally, args: argparse.Namespace, recompute: float) -> None:
    num = args.repeats * args.requests
    for error in tally.failed[:5]:
        print("  failed:", error)
    print(f"failed: {len(tally.failed)} of {num}, {verdict(not tally.failed)}")
    print(f"wrong: {tally.wrong} of {num}, {verdict(not tally.wrong)}")
    longest, bar = max(tally.stalls_s), STALL_BAR_S + recompute
    print(
        f"longest stall {longest:.2f} s (undisturbed {tally.undisturbed_s:.2f} s); "
        f"3 s + {recompute:.2f} s to compute 30 such requests anew: {verdict(longest <= bar)}"
    )


async def kill_api_server(client: Client, args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    requests = [body(prompt(PROMPT_TOKENS, rng), args.tokens) for _ in range(args.requests)]
    expected = await client.answers(requests)
    got = [client.stream(request) for request in requests]
    for stream in got:
        await stream.reached(5)
    rows = (await client.admin("GET", "/v1/requests?limit=1000"))["items"]
    server_of = {row["response_id"]: row["api_server"] for row in rows}
    servers = (await client.admin("GET", "/v1/cluster"))["api_servers"]
    psutil.Process(next(s["pid"] for s in servers if s["id"] == "api0")).kill()
    await asyncio.gather(*(stream.ended() for stream in got))
    num_theirs = wrong = failed = 0
    for want, stream in zip(expected, got, strict=True):
        if server_of.get(stream.response_id) == "api0":
            num_theirs += 1
        elif stream.error is not None:
            failed += 1
        else:
            wrong += stream.answer != want.answer
    num_others = len(got) - num_theirs
    print(f"api0 killed with {num_theirs} streams; of the other {num_others}:")
    print(f"failed {failed}, wrong {wrong}, {verdict(not failed and not wrong)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="instances killed")
    parser.add_argument("--requests", type=int, default=60, help="streams at once")
    parser.add_argument("--tokens", type=int, default=400, help="of each stream's output")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    async def run(client: Client) -> None:
        await kill_instances(client, args)
        await kill_api_server(client, args)

    on_cluster(run, len(INSTANCES), http={"api_servers": 2})


if __name__ == "__main__":
    main()
