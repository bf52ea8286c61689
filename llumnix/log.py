"""Logging: one format, readable at a glance, to standard error and to rotated files."""

from __future__ import annotations

import logging
import logging.handlers
import os
import shutil
import sys
import threading
import time
from pathlib import Path

LOG_DIR_VARIABLE = "LLUMNIX_LOG_DIR"
"""Set for the processes of a joined machine, by its own configuration."""

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_ROTATION_INTERVAL_S = 10.0


def log_dir_here(default: Path) -> Path:
    """Where the processes of this machine log; `default`: as the cluster's configuration says."""
    return Path(os.environ.get(LOG_DIR_VARIABLE, default))


def get_logger(name: str) -> logging.Logger:
    """The logger of a module, under "llumnix"."""
    return logging.getLogger(name)


def log_to(path: Path | None, level: str, *, max_bytes: int, backups: int, terminal: bool) -> None:
    """Send llumnix's log to `path` (rotated at `max_bytes`; None: no file) and, if asked, to stderr."""
    handlers: list[logging.Handler] = []
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(
            logging.handlers.RotatingFileHandler(
                path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8"
            )
        )
    if terminal:
        handlers.append(logging.StreamHandler(sys.stderr))
    root = logging.getLogger("llumnix")
    root.handlers.clear()
    root.propagate = False
    root.setLevel(level.upper())
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
        root.addHandler(handler)


def print_to(path: Path, *, max_bytes: int, backups: int) -> None:
    """Send all that this process and its children print to `path`, which is kept rotated from now on."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    threading.Thread(
        target=_keep_rotated, args=(path, max_bytes, backups), name="log-rotation", daemon=True
    ).start()


def rotate(path: Path, max_bytes: int, backups: int) -> None:
    """Move what a too big file holds to PATH.1, and that to PATH.2, and so on up to `backups`.

    The file itself stays, as others have it open for appending; a line that they write meanwhile may be lost.
    """
    if path.stat().st_size <= max_bytes:
        return
    kept = [path.with_name(f"{path.name}.{number}") for number in range(1, backups + 1)]
    for older, newer in zip(reversed(kept[1:]), reversed(kept[:-1]), strict=True):
        if newer.exists():
            newer.replace(older)
    if kept:
        shutil.copy(path, kept[0])
    os.truncate(path, 0)


def _keep_rotated(path: Path, max_bytes: int, backups: int) -> None:
    while True:
        time.sleep(_ROTATION_INTERVAL_S)
        try:
            rotate(path, max_bytes, backups)
        except OSError as error:
            get_logger(__name__).warning("%s was not rotated: %s", path, error)
