"""Support bundles and tokens."""

import io
import json
import os
import secrets
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from llumnix.admin.schema import EventPage, LogNames, LogTail
from llumnix.ctl import offline
from llumnix.ctl.api import AdminApi, path_of
from llumnix.ctl.errors import CtlError, Exit
from llumnix.ctl.offline import LOG_LINES, MAX_EVENTS, as_text, missing
from llumnix.ctl.session import session_of, tell

JSON_PARTS = ("cluster", "config", "diagnostics")
LISTS = ("instances", "nodes", "requests", "migrations")
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
    state_dir: Annotated[
        Path | None,
        typer.Option(
            "--offline", help="llumnixd is down: collect what lies in its state directory on this machine."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="With --offline: the configuration file, to be included masked.")
    ] = None,
) -> None:
    """Collect configuration (secrets masked), versions, state, journal and logs in one file."""
    if config is not None and state_dir is None:
        raise CtlError("--config: is for --offline only; a llumnixd that runs tells its own", Exit.USAGE)
    stem = f"llumnix-support-{time.strftime('%Y%m%d-%H%M%S')}"
    path = out or Path(f"{stem}.tar.gz")
    if path.exists():
        raise CtlError(f"--out: cannot write {path}: it is there already", Exit.USAGE)
    parts = offline.parts(state_dir, config) if state_dir is not None else live_parts(session_of(context).api)
    write_bundle(parts, path, stem)
    typer.echo(str(path))


def write_bundle(parts: Iterable[tuple[str, str]], path: Path, stem: str) -> None:
    """Write a tar.gz of parts, each a name and a text; the file is there when it is whole, or not at all."""
    draft: str | None = None
    try:
        descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in parts:
                data = content.encode(errors="replace")
                member = tarfile.TarInfo(f"{stem}/{name}")
                member.size, member.mode, member.mtime = len(data), MODE, int(time.time())
                archive.addfile(member, io.BytesIO(data))
        Path(draft).replace(path)
        draft = None
    except OSError as error:
        raise CtlError(f"--out: cannot write {path}: {error.strerror}", Exit.USAGE) from error
    finally:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)


def live_parts(api: AdminApi) -> Iterator[tuple[str, str]]:
    """Yield what the server tells; in place of a part that it does not give stands the reason."""
    try:
        api.call("GET", "/v1/whoami")
    except CtlError as error:
        if error.code is Exit.UNREACHABLE:
            hint = "--offline STATE_DIR collects what lies on this machine"
            raise CtlError(f"{error}; {hint}", error.code) from error
        if error.code is Exit.NOT_ALLOWED:
            raise
    for name in JSON_PARTS:
        yield f"{name}.json", _or_reason(partial(_json_of, api, f"/v1/{name}"))
    for name in LISTS:
        yield f"{name}.json", _or_reason(partial(_json_of, api, f"/v1/{name}?limit=1000"))
    yield "metrics.txt", _or_reason(lambda: api.call("GET", "/metrics").text)
    yield "journal.jsonl", _or_reason(partial(_journal_of, api))
    yield from _logs(api)


def _logs(api: AdminApi) -> Iterator[tuple[str, str]]:
    try:
        logs = api.get("/v1/logs", LogNames)
    except CtlError as error:
        yield "logs/missing.txt", missing(error)
        return
    for name in logs.names:
        yield f"logs/{name}.log", _or_reason(partial(_log_of, api, name, logs.node))
    for other in logs.others:
        for name in other.names:
            yield f"logs/{other.node}/{name}.log", _or_reason(partial(_log_of, api, name, other.node))
        if other.error:
            yield f"logs/{other.node}/missing.txt", missing(other.error)


def _or_reason(get: Callable[[], str]) -> str:
    try:
        return get()
    except CtlError as error:
        return missing(error)


def _json_of(api: AdminApi, path: str) -> str:
    return json.dumps(api.command("GET", path), indent=2)


def _journal_of(api: AdminApi) -> str:
    events = api.items("/v1/events", EventPage, MAX_EVENTS, order="desc")
    return "".join(f"{event.model_dump_json()}\n" for event in reversed(events))


def _log_of(api: AdminApi, name: str, node: str | None) -> str:
    return as_text(api.get(path_of("logs", name), LogTail, lines=LOG_LINES, node=node).lines)


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
