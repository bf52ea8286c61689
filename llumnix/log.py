"""Logging: one format, readable at a glance, to standard error and to rotated files."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


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
