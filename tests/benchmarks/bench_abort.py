"""Clients that leave in the middle of a copy of their request, whose blocks others then take.

python -m tests.benchmarks.bench_abort [--requests 100]
Bar: the tokens of all neighbours, before and after, are those of an undisturbed run (greedy, float32).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
from collections import Counter

from tests.benchmarks.live import Client, Refused, Stream, body, on_cluster, prompt, verdict

MOVED_TOKENS = 6_000
NUM_NEIGHBOURS = 4
ABORTED = "the request was aborted"
"""Why a migration ended that the client's end has caught under way; others do not count."""
MAX_DELAY_S = 0.03
"""From the order to move to the client's end: copies of that length take some 10 ms."""


async def one_case(
    client: Client, rng: random.Random, neighbours: list[dict[str, object]]
) -> tuple[int, str]:
    """(wrong neighbours, how the migration ended)."""
    running_beside = [client.stream(request) for request in neighbours[:NUM_NEIGHBOURS]]
    leaver = client.stream(body(prompt(MOVED_TOKENS, rng), 1_000))
    await leaver.reached(5)
    await client.until(lambda: client.rows(leaver), 30, "the request is listed")
    moving = asyncio.create_task(client.move(leaver))
    await asyncio.sleep(rng.uniform(0, MAX_DELAY_S))
    await leaver.leave()
    # They take blocks that were just given back, at both ends.
    late = [client.stream(request) for request in neighbours[NUM_NEIGHBOURS:]]
    ended = "refused"
    with contextlib.suppress(Refused):
        migration = await moving
        ended = migration["state"] if migration["state"] == "committed" else migration["why"]
    got = [await stream.ended() for stream in (*running_beside, *late)]
    return sum(not is_right(stream) for stream in got), ended


_expected: dict[str, tuple[object, ...]] = {}


def is_right(stream: Stream) -> bool:
    return stream.error is None and _expected[str(stream.body["prompt"])] == stream.answer


async def measure(client: Client, args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    wrong, ends = 0, Counter[str]()
    beside = [body(prompt(200, rng), 150) for _ in range(NUM_NEIGHBOURS)]
    late = [body(prompt(1_500, rng), 40) for _ in range(4)]
    for stream in await client.answers([*beside, *late]):
        assert stream.error is None, stream.error
        _expected[str(stream.body["prompt"])] = stream.answer
    num_cases = 0
    while ends[ABORTED] < args.requests and num_cases < 3 * args.requests:
        num_cases += 1
        bad, ended = await one_case(client, rng, [*beside, *late])
        wrong += bad
        ends[ended] += 1
        if bad or num_cases % 10 == 0:
            print(f"case {num_cases}: {bad} neighbours are wrong ({ended})", flush=True)
    for end, count in ends.most_common():
        print(f"{count:>5} x {end}")
    num = num_cases * (NUM_NEIGHBOURS + len(late))
    held = not wrong and ends[ABORTED] >= args.requests
    print(f"{ends[ABORTED]} aborts of a migration, {wrong} of {num} neighbours wrong: {verdict(held)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=100, help="cases")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    # Little room and no prefix cache: freed blocks are used again at once, and all is computed.
    engine = {"kv_cache_memory_bytes": "64M", "enable_prefix_caching": False}
    on_cluster(lambda client: measure(client, args), 2, engine=engine)


if __name__ == "__main__":
    main()
