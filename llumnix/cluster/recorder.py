"""Records what the scheduler of a live cluster is told ([scheduler] record), for `llumnix-sim replay`."""

from __future__ import annotations

from pathlib import Path

from llumnix.core.events import Event, InstanceState
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import SchedulerSettings
from llumnix.event_log import EventLog, opening_events
from llumnix.log import get_logger

logger = get_logger(__name__)

MAX_BYTES = 64 * 2**20
_STARTING = (InstanceState.PENDING, InstanceState.STARTING, InstanceState.RESTARTING)


class Recorder:
    """Writes every event before the scheduler takes it; a disk that fails ends the record, not the daemon."""

    def __init__(self, path: Path, scheduler: Scheduler, *, max_bytes: int = MAX_BYTES) -> None:
        self._scheduler = scheduler
        self._max_bytes = max_bytes
        self._log: EventLog | None = EventLog(path)
        self._settings: SchedulerSettings | None = None

    def record(self, event: Event, now: float) -> None:
        """Call it before the scheduler is told; other settings begin a new file."""
        if self._log is None:
            return
        try:
            if self._scheduler.settings is not self._settings or self._is_full(self._log):
                self._begin(self._log, now)
            self._log.write(event, now)
        except OSError as error:
            logger.error("the scheduler's events are recorded no more (scheduler.record): %s", error)
            self.close()

    def _begin(self, log: EventLog, now: float) -> None:
        self._settings = self._scheduler.settings
        scheduler = self._scheduler
        opening = opening_events(
            scheduler.instances(), scheduler.table().version, scheduler.cordoned_nodes(), self._settings
        )
        log.begin(*opening, now)

    def _is_full(self, log: EventLog) -> bool:
        """Instances that start cannot be taken over exactly: a file waits for them, to twice its size."""
        if log.num_bytes < self._max_bytes:
            return False
        starts = any(view.state in _STARTING for view in self._scheduler.instances())
        return not starts or log.num_bytes >= 2 * self._max_bytes

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
