"""llumnixctl against a real admin server with a cluster in memory behind it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from llumnix.admin.server import AdminServer
from llumnix.ctl.cli import app
from tests.admin.conftest import OPERATOR, VIEWER, cluster, journal, log_dir, server

__all__ = ["cluster", "journal", "log_dir", "server"]

Ctl = Callable[..., Awaitable[Result]]


@pytest.fixture
def ctl(server: AdminServer, tmp_path: Path) -> Ctl:
    """Run a command; on a thread, as the server is on this loop."""
    for token in (OPERATOR, VIEWER):
        (tmp_path / token.name).write_text(token.secret + "\n")

    async def run(*arguments: str, token: str = OPERATOR.name, url: str = server.url) -> Result:
        command = ["--url", url, "--token-file", str(tmp_path / token), *arguments]
        return await asyncio.to_thread(CliRunner().invoke, app, command, prog_name="llumnixctl")

    return run
