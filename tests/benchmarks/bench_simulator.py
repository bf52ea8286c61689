"""What a simulated run costs: L-L on 16 instances, and the same load per instance on 64.

    python -m tests.benchmarks.bench_simulator [--requests 10000] [--rate 3.8] [--policy llumnix]

Prints processor time, memory, and time per engine step; the issue allows 90 s and 4 GiB for 10,000 requests.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys


def run(policy: str, instances: int, requests: int, rate: float) -> None:
    """One run in this process, whose memory is that of the run."""
    from llumnix.sim.cluster import simulate
    from llumnix.sim.records import SimSetup
    from llumnix.sim.workloads import Workload

    workload = Workload("L-L", requests=requests, rate=rate).build()
    result = simulate(SimSetup(policy=policy, instances=instances), workload)
    tokens = sum(request.output_tokens for request in result.requests)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{instances:3} instances, {requests} requests, {tokens} tokens, {policy}: {result.cpu_s:.1f} s, "
        f"{peak_mib:.0f} MiB, {result.cpu_s / result.engine_steps * 1e6:.0f} us per step, "
        f"{result.cpu_s / tokens * 1e6:.1f} us per token, {result.migrations_committed} migrations",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=3.8)
    parser.add_argument("--policy", default="llumnix")
    parser.add_argument("--instances", type=int, help="only this many, in this process")
    options = parser.parse_args()
    if options.instances is not None:
        run(options.policy, options.instances, options.requests, options.rate)
        return
    for times in (1, 4):
        command = [sys.executable, "-m", "tests.benchmarks.bench_simulator", "--policy", options.policy]
        command += ["--instances", str(16 * times), "--requests", str(options.requests * times)]
        subprocess.run([*command, "--rate", str(options.rate * times)], check=True)


if __name__ == "__main__":
    main()
