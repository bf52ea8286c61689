"""Tasks that run for long: whether one has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


def failure_of(tasks: Iterable[asyncio.Task[Any]]) -> BaseException | None:
    """What ended the first of them that failed, if any did."""
    ended = (task for task in tasks if task.done() and not task.cancelled())
    return next((error for task in ended if (error := task.exception()) is not None), None)
