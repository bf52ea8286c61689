"""Thousands of generated calls to the admin API, as an operator, a viewer and a stranger; prints the counts.

    python -m tests.benchmarks.bench_schemathesis [--examples 150]

Bars: at least 2,000 cases, no 5xx, no answer other than described; a viewer and a stranger change nothing.
"""

import argparse
import asyncio
import logging
import re
import sys
import tempfile
import time
from pathlib import Path

from llumnix.admin.journal import Journal
from llumnix.admin.server import AdminServer
from llumnix.admin.tokens import Token, TokenBook
from tests.admin.conftest import OPERATOR, VIEWER
from tests.admin.fake_cluster import FakeCluster, as_control, make_request
from tests.admin.test_openapi import run_schemathesis


async def main(examples: int) -> int:
    logging.disable(logging.WARNING)  # of every call that is refused
    failed = False
    total = 0
    for token in (OPERATOR, VIEWER, None):
        passed, num_cases = await _attack(token, examples)
        failed |= not passed
        total += num_cases
    print(f"{total} cases in all: {'FAILED' if failed or total < 2_000 else 'passed'} (bar: 2,000)")
    return int(failed or total < 2_000)


async def _attack(token: Token | None, examples: int) -> tuple[bool, int]:
    with tempfile.TemporaryDirectory(prefix="ctl-schemathesis-") as directory:
        place = Path(directory)
        cluster, journal = FakeCluster(), Journal(place / "journal.db")
        cluster.add(make_request("r0"))
        (place / "i0.log").write_text("one line\n")
        server = AdminServer(as_control(cluster), journal, TokenBook([OPERATOR, VIEWER]), place, port=0)
        await server.start()
        began = time.monotonic()
        phases: tuple[str, ...] = ("--phases=examples,coverage,fuzzing", f"--max-examples={examples}")
        if token is not OPERATOR:
            # Who may not act is told so (401, 403) before whether the method exists (405).
            phases += ("--exclude-checks=positive_data_acceptance,unsupported_method",)
        code, output = await run_schemathesis(server.url, token, place, *phases)
        took_s = time.monotonic() - began
        await server.stop()
        journal.close()
    found = re.search(r"([\d,]+) generated", output)
    num_cases = int(found[1].replace(",", "")) if found else 0
    name = "nobody" if token is None else f"{token.name} ({token.role})"
    changed = len(cluster.calls)
    print(f"{name}: {num_cases} cases in {took_s:.0f} s, exit code {code}, {changed} commands came through")
    if code:
        print(output)
    return code == 0 and (token is OPERATOR or changed == 0), num_cases


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=150, help="of each operation, in the random phase")
    sys.exit(asyncio.run(main(parser.parse_args().examples)))
