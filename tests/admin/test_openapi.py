"""The description at /openapi.json holds: schemathesis compares what is described with what is answered."""

import asyncio
import sys
from pathlib import Path

import pytest

from llumnix.admin.server import AdminServer
from tests.admin.conftest import OPERATOR
from tests.admin.fake_cluster import FakeCluster, make_request

SCHEMATHESIS = (
    "run",
    "--phases=coverage",  # systematic, not random: the same cases each time
    "--seed=1",
    "--no-color",
    "--exclude-path=/v1/events/stream",  # it does not end
    # Whether a cursor or a priority class exists, no schema can say.
    "--exclude-checks=positive_data_acceptance",
    f"--header=Authorization: Bearer {OPERATOR.secret}",
)


@pytest.mark.slow
async def test_answers_are_as_described_for_generated_good_and_bad_input(
    server: AdminServer, cluster: FakeCluster, tmp_path: Path
) -> None:
    cluster.add(make_request("r0"))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from schemathesis.cli import schemathesis; schemathesis()",
        *SCHEMATHESIS,
        f"{server.url}/openapi.json",
        cwd=tmp_path,  # it leaves a cache where it runs
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    commands = {call[0] for call in cluster.calls}
    assert {"add_instances", "cordon", "drain", "abort_request", "migrate"} <= commands
