"""llumnix-tui: the command line."""

import asyncio
import gc
import os
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import httpx
import typer

from llumnix.admin.schema import DEFAULT_URL, default_token_file
from llumnix_tui.app import LlumnixApp
from llumnix_tui.client import AdminClient
from llumnix_tui.recording import Recorder, RecordingError, check
from llumnix_tui.source import LiveSource, ReplaySource

EXIT_USAGE = 2

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llumnix-tui {installed_version('llumnix')}")
        raise typer.Exit


@cli.command()
def llumnix_tui(
    url: Annotated[str, typer.Option(help="The daemon's admin API.", envvar="LLUMNIX_URL")] = DEFAULT_URL,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token; by default admin.token in ~/.local/state/llumnix or /var/lib/llumnix.",
            envvar="LLUMNIX_TOKEN_FILE",
            show_default=False,
        ),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer no actions.")] = False,
    record: Annotated[
        Path | None, typer.Option(help="Write what is shown to this new file.", show_default=False)
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Show such a file instead of a cluster.", show_default=False)
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Watch and operate a llumnix cluster: instances, requests, migrations and events, live."""
    try:
        if replay is not None:
            if record is not None:
                raise _Wrong("--record: cannot be used with --replay, which has recorded already")
            check(replay)
            LlumnixApp(ReplaySource(replay), read_only=True).run()
            return
        check_url(url)
        asyncio.run(_live(url, find_token(url, token_file), record, read_only=read_only))
    except (_Wrong, RecordingError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_USAGE) from None


def main() -> None:
    """Entry point of the command `llumnix-tui`."""
    # What is imported stays: the collector need not look at it again, which would hold up keys.
    gc.freeze()
    cli(prog_name="llumnix-tui")


class _Wrong(Exception):
    """An option has a value that cannot be; one sentence."""


def check_url(url: str) -> None:
    """Refuse a URL at which there can be no admin API."""
    try:
        parts = httpx.URL(url)
        valid = parts.scheme in ("http", "https") and parts.host and (parts.port or 1) <= 65535
    except httpx.InvalidURL:
        valid = False
    if not valid:
        raise _Wrong(f"--url: {url!r}, expected a URL such as {DEFAULT_URL}")


def find_token(url: str, path: Path | None) -> str | None:
    """Return the token in a file, or in the default one; None where there is none: the header says so."""
    if path is not None:
        return read_token(path)
    path = default_token_file(url)
    return read_token(path) if path is not None and os.access(path, os.F_OK) else None


def read_token(path: Path) -> str:
    """Return the token in a file."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise _Wrong(f"--token-file: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _Wrong(f"--token-file: {path} holds no token, expected one line of ASCII") from error
    if not token:
        raise _Wrong(f"--token-file: {path} is empty, expected a token")
    return token


async def _live(url: str, token: str | None, record: Path | None, *, read_only: bool) -> None:
    source = LiveSource(AdminClient(url, token), None if record is None else Recorder(record))
    try:
        await LlumnixApp(source, read_only=read_only).run_async()
    finally:
        await source.close()
