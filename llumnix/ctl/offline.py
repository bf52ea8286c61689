"""A support bundle's parts where llumnixd is down: what lies in its state directory, read only."""

import json
import platform
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path

from llumnix.admin.logs import LogDir
from llumnix.config import effective, load_config
from llumnix.ctl.errors import CtlError, Exit
from llumnix.errors import LlumnixError

LOG_LINES = 10_000
MAX_EVENTS = 10_000


def parts(state_dir: Path, config: Path | None) -> Iterator[tuple[str, str]]:
    """Yield names and texts; the ledger, which is made of keys, is only listed among the files."""
    if not state_dir.is_dir():
        raise CtlError(f"--offline: {str(state_dir)!r}, expected llumnixd's state directory", Exit.USAGE)
    yield "versions.json", json.dumps(_versions(), indent=2)
    yield "config.json", _or_reason(partial(_config, config))
    yield "files.txt", _or_reason(partial(_files, state_dir))
    yield "journal.jsonl", _or_reason(partial(_journal, state_dir / "journal.db"))
    logs = LogDir(state_dir / "logs")
    for name in logs.names():
        yield f"logs/{name}.log", _or_reason(partial(_log, logs, name))


def missing(error: Exception | str) -> str:
    """Return what stands in place of a part that cannot be had."""
    return json.dumps({"missing": str(error)}) + "\n"


def as_text(lines: Iterable[str]) -> str:
    """Return lines as the text of a file."""
    return "".join(f"{line}\n" for line in lines)


def _or_reason(get: Callable[[], str]) -> str:
    try:
        return get()
    except (OSError, ValueError, sqlite3.Error, LlumnixError) as error:
        return missing(error)


def _versions() -> dict[str, str]:
    return {
        "llumnix": installed_version("llumnix"),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _config(path: Path | None) -> str:
    if path is None:
        raise ValueError("llumnixd's configuration file was not named with --config")
    return json.dumps(effective(load_config(path), mask_secrets=True), indent=2)


def _files(state_dir: Path) -> str:
    """The state directory's own files with time and size: which there are tells how llumnixd ended."""
    lines = []
    for path in sorted(state_dir.iterdir()):
        stat = path.lstat()
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(stat.st_mtime))
        lines.append(f"{when} {stat.st_mode:06o} {stat.st_size:>12} {path.name}")
    return as_text(lines)


def _journal(path: Path) -> str:
    columns = ("seq", "time", "kind", "severity", "actor", "target", "message", "data")
    query = f"SELECT {', '.join(columns)} FROM events ORDER BY seq DESC LIMIT {MAX_EVENTS}"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        rows = database.execute(query).fetchall()
    events = (dict(zip(columns, row, strict=True)) for row in reversed(rows))
    return as_text(json.dumps({**event, "data": json.loads(event["data"])}) for event in events)


def _log(logs: LogDir, name: str) -> str:
    return as_text(logs.tail(name, LOG_LINES))
