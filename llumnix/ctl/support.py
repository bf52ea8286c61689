"""Support bundles and tokens."""

import io
import json
import os
import secrets
import tarfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from llumnix.admin.schema import EventPage, LogNames, LogTail
from llumnix.ctl.api import AdminApi, path_of
from llumnix.ctl.errors import CtlError, Exit
from llumnix.ctl.session import session_of, tell

JSON_PARTS = ("cluster", "config", "diagnostics")
LISTS = ("instances", "nodes", "requests", "migrations")
LOG_LINES = 10_000
MAX_EVENTS = 10_000
MODE = 0o600


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("support-bundle")(support_bundle)
    token = typer.Typer(no_args_is_help=True, help="Where the token is; further ones with a name and a role.")
    token.command("path")(token_path)
    token.command("create")(token_create)
    app.add_typer(token, name="token")


def support_bundle(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; llumnix-support-TIME.tar.gz by default.")
    ] = None,
) -> None:
    """Collect configuration (secrets masked), versions, state, journal and logs in one file."""
    stem = f"llumnix-support-{time.strftime('%Y%m%d-%H%M%S')}"
    path = out or Path(f"{stem}.tar.gz")
    api = session_of(context).api
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "wb") as file:
            write_bundle(api, file, stem)
    except OSError as error:
        raise CtlError(f"--out: cannot write {path}: {error.strerror}", Exit.USAGE) from error
    typer.echo(str(path))


def write_bundle(api: AdminApi, file: Any, stem: str) -> None:
    """Write a tar.gz; a part that the server does not give is replaced by its reason."""
    with tarfile.open(fileobj=file, mode="w:gz") as archive:

        def add(name: str, content: str) -> None:
            data = content.encode()
            member = tarfile.TarInfo(f"{stem}/{name}")
            member.size, member.mode, member.mtime = len(data), MODE, int(time.time())
            archive.addfile(member, io.BytesIO(data))

        for name in JSON_PARTS:
            add(f"{name}.json", _json_of(api, f"/v1/{name}"))
        for name in LISTS:
            add(f"{name}.json", _json_of(api, f"/v1/{name}?limit=1000"))
        add("metrics.txt", api.call("GET", "/metrics").text)
        events = api.items("/v1/events", EventPage, MAX_EVENTS, order="desc")
        add("journal.jsonl", "".join(f"{event.model_dump_json()}\n" for event in reversed(events)))
        for name in api.get("/v1/logs", LogNames).names:
            tail = api.get(path_of("logs", name), LogTail, lines=LOG_LINES)
            add(f"logs/{name}.log", "".join(f"{line}\n" for line in tail.lines))


def _json_of(api: AdminApi, path: str) -> str:
    try:
        return json.dumps(api.command("GET", path), indent=2)
    except CtlError as error:
        if error.code is not Exit.REFUSED:
            raise
        return json.dumps({"missing": str(error)})


def token_path(context: typer.Context) -> None:
    """Print the path of the token file that is in use."""
    typer.echo(str(session_of(context).token_path))


def token_create(
    name: Annotated[str, typer.Argument(help="Who it is for; the journal names it with every action.")],
    file: Annotated[Path, typer.Option(help="A new file for the secret.")],
    role: Annotated[str, typer.Option(help="viewer (reads) or operator (acts).")] = "viewer",
) -> None:
    """Make a token for somebody, and print what to add to llumnixd's configuration."""
    if role not in ("viewer", "operator"):
        raise CtlError(f"--role: {role!r}, expected viewer or operator", Exit.USAGE)
    path = file.expanduser().absolute()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "w") as opened:
            opened.write(secrets.token_urlsafe(32) + "\n")
    except OSError as error:
        raise CtlError(f"--file: cannot make {path}: {error.strerror}", Exit.USAGE) from error
    # JSON's strings are TOML's.
    typer.echo(f"[[admin.tokens]]\nname = {json.dumps(name)}\nrole = {json.dumps(role)}")
    typer.echo(f"token_file = {json.dumps(str(path))}")
    tell("add this to the configuration and restart llumnixd; it must be able to read the file")
