"""What core.Scheduler costs in CPU time: a round over many instances, and an event.

    python tests/benchmarks/bench_scheduler.py [INSTANCES] [REQUESTS]

Defaults: 1,000 instances that run 100,000 requests, a tenth of the instances overloaded.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterable

from llumnix.core.events import (
    AddInstances,
    Beat,
    Event,
    HeldRequests,
    InstancePlaced,
    InstanceReady,
    MoveRequests,
    Reported,
    Tick,
)
from llumnix.core.load import ClassLoad, Headroom, InstanceReport
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import ScalingSettings, SchedulerSettings
from llumnix.core.victims import Candidate, MoveGoal, Sent, next_victim

TOTAL_BLOCKS = 851
ROUNDS = 50


def report(rng: random.Random, uid: int, seq: int, num_requests: int) -> InstanceReport:
    high = num_requests // 10 if uid % 10 == 0 else 0
    is_full = rng.random() < 0.1
    used = rng.randint(800, TOTAL_BLOCKS) if is_full else rng.randint(100, 500)
    return InstanceReport(
        uid=uid,
        seq=seq,
        block_size=16,
        total_blocks=TOTAL_BLOCKS,
        used_blocks=used,
        max_running=256,
        running=num_requests,
        waiting=2 if is_full else 0,
        queued_blocks=90 if is_full else 0,
        head_blocks=60 if is_full else 0,
        classes={
            -10: ClassLoad(high, 0, used // 10),
            0: ClassLoad(num_requests - high, 0, used - used // 10),
        },
    )


def timed_ms(scheduler: Scheduler, events: Iterable[Event], now: float) -> tuple[list[float], int]:
    took, num_orders = [], 0
    for event in events:
        started = time.thread_time()
        actions = scheduler.handle(event, now)
        took.append((time.thread_time() - started) * 1e3)
        num_orders += sum(isinstance(action, MoveRequests) for action in actions)
    return took, num_orders


def bench_rounds(policy: str, num_instances: int, num_requests: int) -> None:
    rng = random.Random(1)
    scheduler = Scheduler(
        SchedulerSettings(
            policy=policy,
            headroom={-10: Headroom(target_load_tokens=1600)},
            scaling=ScalingSettings(enabled=True, max_instances=num_instances),
        )
    )
    now = 0.0
    scheduler.handle(AddInstances(num_instances), now)
    for uid in range(1, num_instances + 1):
        scheduler.handle(InstancePlaced(uid, "n0", uid), now)
        scheduler.handle(InstanceReady(uid), now)
    rounds, reports, orders = [], [], 0
    for seq in range(1, ROUNDS + 1):
        now += 0.3  # orders of the round before have run out half-way: all are given again
        told: list[Event] = [HeldRequests(0, 3, 3000, 2000, 0)]
        for uid in range(1, num_instances + 1):
            told.append(Reported(report(rng, uid, seq, num_requests // num_instances)))
            told.append(Beat(uid, 0.0, None, 0.5))
        reports += timed_ms(scheduler, told, now)[0]
        took, num_orders = timed_ms(scheduler, [Tick()], now)
        rounds += took
        orders += num_orders
    print(
        f"{policy:10s} round over {num_instances} instances, {num_requests} requests: "
        f"median {statistics.median(rounds):.1f} ms, worst {max(rounds):.1f} ms, {orders / ROUNDS:.0f} orders"
        f"; report or beat: mean {statistics.mean(reports) * 1e3:.1f} us"
    )


def bench_victim(num_requests: int) -> None:
    rng = random.Random(2)
    candidates = [
        Candidate(f"r{n}", rng.choice((-10, 0, 0)), 16 * blocks, blocks)
        for n, blocks in enumerate(rng.randint(1, 60) for _ in range(num_requests))
    ]
    load = report(rng, 1, 1, num_requests)
    goal = MoveGoal(until_freeness=100, target_room_blocks=400, target_running=10, target_freeness=3)
    took = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        next_victim(candidates, load, goal, Sent())
        took.append((time.thread_time() - started) * 1e6)
    print(f"llumlet    next victim of {num_requests} requests: median {statistics.median(took):.0f} us")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    instances, requests = (*given, *(1000, 100_000)[len(given) :])
    for name in ("llumnix+", "llumnix", "load"):
        bench_rounds(name, instances, requests)
    bench_victim(256)
