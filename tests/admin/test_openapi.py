"""The description at /openapi.json holds: schemathesis compares what is described with what is answered."""

import asyncio
import sys
from pathlib import Path

import pytest

from llumnix.admin.server import AdminServer
from llumnix.admin.tokens import Token
from tests.admin.conftest import OPERATOR
from tests.admin.fake_cluster import FakeCluster, make_request

SCHEMATHESIS = (
    "run",
    "--seed=1",
    "--no-color",
    "--exclude-path=/v1/events/stream",  # it does not end
    # Whether a cursor or a priority class exists, no schema can say.
    "--exclude-checks=positive_data_acceptance",
)
SYSTEMATIC = "--phases=coverage"
"""Not random: the same cases each time."""


async def run_schemathesis(url: str, token: Token | None, place: Path, *options: str) -> tuple[int, str]:
    """Attack a server; returns schemathesis' exit code and all that it said."""
    header = () if token is None else (f"--header=Authorization: Bearer {token.secret}",)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from schemathesis.cli import schemathesis; schemathesis()",
        *SCHEMATHESIS,
        *options,
        *header,
        f"{url}/openapi.json",
        cwd=place,  # it leaves a cache where it runs
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.slow
async def test_answers_are_as_described_for_generated_good_and_bad_input(
    server: AdminServer, cluster: FakeCluster, tmp_path: Path
) -> None:
    cluster.add(make_request("r0"))
    code, output = await run_schemathesis(server.url, OPERATOR, tmp_path, SYSTEMATIC)
    assert code == 0, output
    commands = {call[0] for call in cluster.calls}
    assert {"add_instances", "cordon", "drain", "abort_request", "migrate"} <= commands
    assert {"scale", "restart", "terminate"} <= commands
