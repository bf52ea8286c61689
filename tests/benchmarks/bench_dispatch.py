"""Microseconds that one dispatch decision takes: python tests/benchmarks/bench_dispatch.py [policy ...]

A decision is `choose` and `sent`, on a policy's dispatcher that has reports from all instances, for prompts
of 8k tokens whose beginnings every instance was sent before; the cost of `observe` is shown beside it. The
bar is 100 us over 64 instances.
"""

from __future__ import annotations

import statistics
import sys
import time

from llumnix.core.choice import Choice
from llumnix.core.events import DispatchEntry
from llumnix.core.load import ClassLoad, Headroom, InstanceReport
from llumnix.core.policies import POLICIES, make_dispatcher
from llumnix.core.prefixes import prefix_keys
from llumnix.core.settings import SchedulerSettings

NUM_DECISIONS = 5_000
SENDS_PER_REPORT = 20
PROMPTS = [prefix_keys([number] * 8192) for number in range(4)]


def report(uid: int, seq: int, num_taken: int) -> InstanceReport:
    running = 5 + uid % 7
    classes = {0: ClassLoad(running, 0, 20 * running), -10: ClassLoad(1, 0, 20)}
    return InstanceReport(
        uid=uid,
        seq=seq,
        block_size=16,
        total_blocks=4096,
        used_blocks=20 * running + 20,
        max_running=256,
        running=running + 1,
        waiting=0,
        classes=classes,
        taken={0: num_taken},
    )


def measure(policy: str, num_instances: int) -> tuple[float, float, float]:
    """Median and 99th percentile of a decision, median of an observed report, in microseconds."""
    settings = SchedulerSettings(policy=policy, headroom={-10: Headroom(1600)})
    dispatcher = make_dispatcher(settings, api_servers=2, server_index=0)
    dispatcher.set_table(DispatchEntry(uid, f"i{uid}", True) for uid in range(num_instances))
    for uid in range(num_instances):
        for prompt in PROMPTS:
            dispatcher.sent(uid, 8192, 0, prompt)
        dispatcher.reset_sent(uid)
    num_sent = [0] * num_instances
    decisions, reports = [], []
    for step in range(NUM_DECISIONS):
        if step % SENDS_PER_REPORT == 0:
            for uid in range(num_instances):
                latest = report(uid, step, num_sent[uid])
                start = time.perf_counter()
                dispatcher.observe(latest)
                reports.append(time.perf_counter() - start)
        prompt = PROMPTS[step % len(PROMPTS)]
        start = time.perf_counter()
        choice = dispatcher.choose(300, 0, prefix=prompt)
        if isinstance(choice, Choice):
            dispatcher.sent(choice.uid, 300, 0, prompt)
            num_sent[choice.uid] += 1
        decisions.append(time.perf_counter() - start)
    p99 = statistics.quantiles(decisions, n=100)[98]
    return 1e6 * statistics.median(decisions), 1e6 * p99, 1e6 * statistics.median(reports)


def main() -> None:
    policies = sys.argv[1:] or list(POLICIES)
    print(f"{'policy':16}{'instances':>10}{'median us':>12}{'p99 us':>10}{'report us':>12}")
    for policy in policies:
        for num_instances in (2, 16, 64):
            median_us, p99_us, report_us = measure(policy, num_instances)
            print(f"{policy:16}{num_instances:>10}{median_us:>12.1f}{p99_us:>10.1f}{report_us:>12.1f}")


if __name__ == "__main__":
    main()
