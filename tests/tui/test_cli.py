"""The command line: where it finds the token, and what it says of options that cannot be."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llumnix.admin import schema
from llumnix_tui import cli

Seen = dict[str, Any]


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Return what the app is started with, in an empty home and without the environment's settings."""
    started: Seen = {}

    async def live(url: str, token: str | None, record: Path | None, *, read_only: bool) -> None:
        started.update(url=url, token=token)

    monkeypatch.setattr(cli, "_live", live)
    files = (str(tmp_path / "own.token"), str(tmp_path / "service.token"))
    monkeypatch.setattr(schema, "TOKEN_FILES", files)
    for name in ("LLUMNIX_URL", "LLUMNIX_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    return started


def test_without_options_the_default_token_is_sent(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "service.token").write_text("service-secret\n")
    assert CliRunner().invoke(cli.cli, []).exit_code == 0
    assert seen == {"url": "http://127.0.0.1:8001", "token": "service-secret"}
    (tmp_path / "own.token").write_text("own-secret\n")
    assert CliRunner().invoke(cli.cli, []).exit_code == 0
    assert seen["token"] == "own-secret"


def test_without_any_token_it_starts_and_the_daemon_says_what_it_wants(seen: Seen) -> None:
    assert CliRunner().invoke(cli.cli, []).exit_code == 0
    assert seen["token"] is None


@pytest.mark.parametrize(
    "url", ["foo", "http://", "http://127.0.0.1:99999", "http://[::1", "ftp://h", "http://h:x", ""]
)
def test_a_url_that_cannot_be_is_one_sentence(seen: Seen, url: str) -> None:
    done = CliRunner().invoke(cli.cli, ["--url", url])
    assert (done.exit_code, seen) == (2, {})
    assert done.stderr == f"--url: {url!r}, expected a URL such as http://127.0.0.1:8001\n"
