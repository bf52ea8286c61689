"""Operator actions in the journal: who did what to which target, and how it ended. One event each."""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llumnix.admin.journal import Journal, JournalError
from llumnix.admin.schema import Severity
from llumnix.errors import ConfigError, RefusedError, UnknownTargetError

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Action:
    """What an operator asked for; its event is of the kind `operator.<name>`."""

    name: str
    actor: str
    target: str
    asked: Mapping[str, Any] = field(default_factory=dict)


async def audited(journal: Journal, action: Action, command: Awaitable[Result]) -> Result:
    """Await a command and write its one event, however it ends."""
    try:
        result = await command
    except (UnknownTargetError, RefusedError, ConfigError) as error:
        _write(journal, action, "refused", "warning", {"why": str(error)})
        raise
    except asyncio.CancelledError:
        _write(journal, action, "interrupted", "error", {"why": "the daemon stopped meanwhile"})
        raise
    except Exception as error:
        _write(journal, action, "failed", "error", {"why": repr(error)})
        raise
    _write(journal, action, "done", "info", {"answer": result} if isinstance(result, str | list) else {})
    return result


def _write(
    journal: Journal, action: Action, outcome: str, severity: Severity, details: Mapping[str, Any]
) -> None:
    why = f": {details['why']}" if "why" in details else ""
    message = f"{action.actor}: {action.name} {action.target}: {outcome}{why}"
    data = {"outcome": outcome, "asked": dict(action.asked), **details}
    try:
        journal.append(
            f"operator.{action.name}",
            message,
            severity=severity,
            actor=action.actor,
            target=action.target,
            data=data,
        )
    except JournalError:
        # The action has taken place and is answered truthfully; the log keeps the record instead.
        log.exception("not in the journal: %s %s", message, data)
