"""What a migration sends of a request whose first 2k tokens the target has in its prefix cache already.

python -m tests.benchmarks.bench_prefix_skip [--repeats 10] [--prefix 2048] [--own 512]
"""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import dataclass

from tests.benchmarks.live import Client, body, on_cluster, prompt, verdict


@dataclass
class Sample:
    num_bytes: int
    sent: int
    skipped: int


async def move_one(client: Client, tokens: list[int]) -> Sample:
    """Move a request of these prompt tokens to the other instance once it decodes."""
    stream = client.stream(body(tokens, 4_000))
    await stream.reached(10)
    _, migration = await client.move_once_listed(stream)
    assert migration["state"] == "committed", migration["why"]
    await stream.leave()
    return Sample(migration["bytes"], migration["blocks_sent"], migration["blocks_skipped"])


async def measure(client: Client, args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    shared: list[Sample] = []
    fresh: list[Sample] = []
    for _ in range(args.repeats):
        prefix = prompt(args.prefix, rng)
        # It runs at one instance and then at the other: both have the prefix now.
        await move_one(client, prefix + prompt(1, rng))
        shared.append(await move_one(client, prefix + prompt(args.own, rng)))
        fresh.append(await move_one(client, prompt(args.prefix + args.own, rng)))
    report(args, shared, fresh)


def report(args: argparse.Namespace, shared: list[Sample], fresh: list[Sample]) -> None:
    print(f"{args.prefix} tokens shared, {args.own} of its own; medians of {args.repeats}")
    medians = {}
    for name, samples in (("target has the prefix", shared), ("target has nothing", fresh)):
        medians[name] = statistics.median(s.num_bytes for s in samples)
        sent = statistics.median(s.sent for s in samples)
        skipped = statistics.median(s.skipped for s in samples)
        print(f"{name:24}{medians[name] / 1e6:9.2f} MB  blocks sent {sent:g}, skipped {skipped:g}")
    share = medians["target has the prefix"] / medians["target has nothing"]
    expected = args.own / (args.prefix + args.own)
    holds = share <= expected + 0.1
    print(f"bytes sent: {share:.2f} of all; its own part is {expected:.2f} of all, {verdict(holds)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--prefix", type=int, default=2048)
    parser.add_argument("--own", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    on_cluster(lambda client: measure(client, args), 2)


if __name__ == "__main__":
    main()
