"""Requests of every kind, moved 1 to 5 times each under load, against the same requests never moved.

python -m tests.benchmarks.bench_exactness [--requests 200] [--tokens 800] [--concurrency 24]
Bars: every answer the same; 95 % of the migrations commit, half of them between first and last token.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.live import Client, Refused, Stream, body, on_cluster, prompt, verdict
from tests.e2e.workload import bodies

NUM_INSTANCES = 3
MAX_MOVES = 5
AT_ONCE = 3
"""Migrations asked for at a time; every instance may take part in all of them."""
LONG_ANSWER = {
    "type": "object",
    "properties": {
        "a": {"type": "string"},
        "b": {"type": "array", "items": {"type": "integer"}, "minItems": 150},
    },
    "required": ["a", "b"],
}
"""A schema whose answers are not over before they can be moved."""
LONG_EVERY = 10
"""Of so many requests one has a prompt that is prefilled in chunks."""
ENGINE = {"long_prefill_token_threshold": 1024}


@dataclass
class Moves:
    """What became of the migrations that were asked for."""

    at_once: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    committed: int = 0
    mid_stream: int = 0
    """Committed after the first event that the client got, and before the last one."""
    aborted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    per_request: Counter[int] = field(default_factory=Counter)

    @property
    def begun(self) -> int:
        return self.committed + self.aborted.total()


async def moved(client: Client, request: dict[str, Any], rng: random.Random, moves: Moves) -> Stream:
    """Run a request to its end and move it at random moments meanwhile."""
    stream = client.stream(request)
    wanted = rng.randint(1, MAX_MOVES)
    ended_at: list[float] = []
    num_tokens = request["max_tokens"]
    if rng.random() < 0.75:  # else it may be moved while it waits or is being prefilled
        await stream.reached(1)
    while len(ended_at) < wanted and not stream.is_over:
        # Spread over its life: the first of five early, a single one anywhere.
        left = num_tokens - len(stream.at)
        await stream.reached(len(stream.at) + rng.randint(0, max(1, left // (wanted - len(ended_at) + 1))))
        try:
            async with moves.at_once:
                _, migration = await client.move_once_listed(stream)
        except Refused as refused:  # it has ended
            moves.refused[str(refused)[:160]] += 1
        else:
            if migration["state"] == "committed":
                ended_at.append(migration["ended_at"])
            else:
                moves.aborted[migration["why"]] += 1
    await stream.ended()
    moves.committed += len(ended_at)
    moves.mid_stream += sum(stream.at[0] <= at <= stream.at[-1] for at in ended_at)
    moves.per_request[len(ended_at)] += 1
    return stream


async def measure(client: Client, args: argparse.Namespace) -> None:
    requests = bodies(args.requests, max_tokens=args.tokens)
    for request in requests:
        if "structured_outputs" in request:
            request["structured_outputs"] = {"json": LONG_ANSWER}
    for k in range(LONG_EVERY // 2, len(requests), LONG_EVERY):
        requests[k] = body(prompt(4_000, random.Random(k)), args.tokens, logprobs=2)
    began = time.monotonic()
    expected = await client.answers(requests, args.concurrency)
    print(f"the unmoved run took {time.monotonic() - began:.0f} s", flush=True)
    moves, room, rng = Moves(), asyncio.Semaphore(args.concurrency), random.Random(args.seed)

    async def one(request: dict[str, Any]) -> Stream:
        async with room:
            return await moved(client, request, random.Random(rng.random()), moves)

    got = await asyncio.gather(*(one(request) for request in requests))
    same = sum(a.error is None and a.answer == b.answer for a, b in zip(expected, got, strict=True))
    failed = [s.error for s in (*expected, *got) if s.error is not None]
    report(moves, same, len(requests), failed)


def report(moves: Moves, same: int, num_requests: int, failed: list[str]) -> None:
    share = moves.committed / max(1, moves.begun)
    mid = moves.mid_stream / max(1, moves.committed)
    print("committed migrations per request:", dict(sorted(moves.per_request.items())))
    for title, reasons in (("aborted", moves.aborted), ("refused", moves.refused)):
        for reason, count in reasons.most_common(5):
            print(f"  {title} {count} x {reason}")
    for error in failed[:5]:
        print("  failed:", error)
    print(f"{moves.committed} of {moves.begun} migrations committed: {share:.1%}, {verdict(share >= 0.95)}")
    print(f"{moves.mid_stream} between first and last token: {mid:.1%}, {verdict(mid >= 0.5)}")
    print(f"token-identical: {same} of {num_requests}, {verdict(same == num_requests)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=800, help="of each request's output")
    parser.add_argument("--concurrency", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    migration = {"max_concurrent": AT_ONCE}
    on_cluster(lambda client: measure(client, args), NUM_INSTANCES, engine=ENGINE, migration=migration)


if __name__ == "__main__":
    main()
