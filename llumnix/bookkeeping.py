"""Journal and ledger as llumnixd writes them while it serves: a disk that fails does not end it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from llumnix.admin.journal import Journal
from llumnix.admin.schema import Severity
from llumnix.cluster import ledger as ledgers
from llumnix.cluster.ledger import Ledger
from llumnix.errors import LlumnixError
from llumnix.log import get_logger

logger = get_logger(__name__)

RETRY_S = 10.0


class Outage:
    """A file whose writes may fail: told once, and once that it works again.

    After one that failed none is tried for RETRY_S: a file that another process has locked would hold up
    the event loop each time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._retry_at = 0.0
        self.reason = ""
        """Why it cannot be written; "" while it can."""

    def attempt(self, write: Callable[[], object]) -> bool:
        """Whether it was written; what the disk is to blame for is not raised."""
        if self.reason and self._clock() < self._retry_at:
            return False
        try:
            write()
        except LlumnixError as error:
            if not self.reason:
                logger.error("%s; the cluster serves on", error)
            self.reason = str(error)
            self._retry_at = self._clock() + RETRY_S
            return False
        if self.reason:
            logger.warning("it works again: %s", self.reason)
        self.reason = ""
        return True


class Bookkeeper:
    """Writes the journal, the log beside it, and the ledger."""

    def __init__(
        self,
        journal: Journal,
        state_dir: Path,
        tell_fault: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell_fault(target, message)` shows an error to whoever looks on."""
        self._journal = journal
        self._state_dir = state_dir
        self._tell_fault = tell_fault
        self._journal_outage = Outage(clock)
        self._ledger_outage = Outage(clock)
        self._num_missing = 0

    def record(self, kind: str, severity: str, target: str, message: str) -> None:
        """An event of the cluster, to the log and to the journal."""
        level = {"info": logger.info, "warning": logger.warning, "error": logger.error}[severity]
        level("%s %s: %s", target, kind, message)
        self.note(kind, message, severity=severity, target=target)  # type: ignore[arg-type]
        if severity == "error":
            self._tell_fault(target, message)

    def note(self, kind: str, message: str, *, severity: Severity = "info", target: str = "") -> None:
        """An event to the journal only."""

        def append() -> None:
            if self._num_missing:
                missing = f"{self._num_missing} events are missing here: {self._journal_outage.reason}"
                self._journal.append("journal.gap", missing, severity="warning")
                self._num_missing = 0
            self._journal.append(kind, message, severity=severity, target=target)

        if not self._journal_outage.attempt(append):
            self._num_missing += 1

    def write_down(self, ledger: Ledger) -> bool:
        """Whether the ledger is on the disk; where it is not, it is for the caller to try again."""
        return self._ledger_outage.attempt(lambda: ledgers.write(self._state_dir, ledger))

    def faults(self) -> list[str]:
        """What cannot be written at present, and why."""
        return [o.reason for o in (self._journal_outage, self._ledger_outage) if o.reason]
