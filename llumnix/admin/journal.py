"""The event journal: an SQLite file in the state directory that outlives the daemon and stays bounded."""

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from llumnix.admin.schema import Event, Severity
from llumnix.errors import LlumnixError

log = logging.getLogger(__name__)

COLUMNS = ("seq", "time", "kind", "severity", "actor", "target", "message", "data")
SCHEMA = """CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, kind TEXT NOT NULL, severity TEXT NOT NULL,
    actor TEXT NOT NULL, target TEXT NOT NULL, message TEXT NOT NULL, data TEXT NOT NULL)"""
MAX_MESSAGE_CHARS = 4096
MAX_DATA_BYTES = 16 * 1024
BUSY_TIMEOUT_S = 5.0


class JournalError(LlumnixError):
    """The journal's file cannot be read or written (disk full, permissions)."""


class _CorruptError(Exception):
    """The file is no journal of ours, or is damaged."""


class Journal:
    """Appends events and reads them back; every method may be called from any thread.

    Sequence numbers only grow, across restarts, trimming and the replacement of a damaged file. An event is
    in the file when `append` returns: it survives kill -9 of the daemon (a power cut may lose the last ones).
    """

    def __init__(self, path: Path, max_events: int = 100_000, clock: Callable[[], float] = time.time) -> None:
        """Open or create the file; a damaged one is moved aside, and the first event says so."""
        self._path = path
        self._max_events = max_events
        self._trim_batch = max(1, max_events // 100)
        self._clock = clock
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._listeners: set[Callable[[], None]] = set()
        self._appended = 0
        self._num_events = 0
        self._last_seq = 0
        try:
            self._open()
        except _CorruptError as error:
            moved_to = self._move_aside()
            self._open()
            self._raise_next_seq()
            message = f"the journal was damaged ({error}) and was moved to {moved_to}; a new one begins here"
            log.error("%s", message)
            self.append("journal.replaced", message, severity="error", data={"moved_to": str(moved_to)})

    @property
    def last_seq(self) -> int:
        """The sequence number of the latest event, 0 before the first."""
        return self._last_seq

    @property
    def appended(self) -> int:
        """Events appended since this journal was opened."""
        return self._appended

    def append(
        self,
        kind: str,
        message: str = "",
        *,
        severity: Severity = "info",
        actor: str = "llumnixd",
        target: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> Event:
        """Write an event and wake the listeners; raises JournalError where the file cannot be written."""
        blob = _encode(data or {})
        draft = Event(
            seq=0,
            time=self._clock(),
            kind=kind,
            severity=severity,
            actor=actor,
            target=target,
            message=message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…",
            data=from_json(blob),
        )
        row = (draft.time, kind, severity, actor, target, draft.message, blob.decode())
        with self._write_lock:
            try:
                cursor = self._writer.execute(
                    f"INSERT INTO events ({', '.join(COLUMNS[1:])}) VALUES (?, ?, ?, ?, ?, ?, ?)", row
                )
                seq = self._last_seq = int(cursor.lastrowid or 0)
                self._appended += 1
                self._num_events += 1
                self._trim()
            except sqlite3.Error as error:
                raise JournalError(f"the journal {self._path} cannot be written: {error}") from error
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()
        return draft.model_copy(update={"seq": seq})

    def since(self, seq: int, limit: int) -> list[Event]:
        """Return the oldest `limit` events after `seq`, in order."""
        return self._read("seq > ? ORDER BY seq LIMIT ?", (seq, limit))

    def latest(self, since: int, before: int, limit: int) -> list[Event]:
        """Return the newest `limit` events between `since` and `before`, both excluded, the newest first."""
        return self._read("seq > ? AND seq < ? ORDER BY seq DESC LIMIT ?", (since, before, limit))

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each append, on the appending thread; returns what ends that.

        It tells only that there is something new: a listener reads from where it stands, so a slow one costs
        no memory and misses nothing that is still kept. It must neither block nor raise.
        """
        with self._write_lock:
            self._listeners.add(listener)

        def unsubscribe() -> None:
            with self._write_lock:
                self._listeners.discard(listener)

        return unsubscribe

    def close(self) -> None:
        """Close the file; the journal is of no use afterwards."""
        with self._write_lock, self._read_lock:
            self._listeners.clear()
            self._reader.close()
            self._writer.close()

    def _read(self, where: str, values: tuple[int, ...]) -> list[Event]:
        with self._read_lock:
            try:
                rows = self._reader.execute(
                    f"SELECT {', '.join(COLUMNS)} FROM events WHERE {where}", values
                ).fetchall()
            except sqlite3.Error as error:
                raise JournalError(f"the journal {self._path} cannot be read: {error}") from error
        return [Event(**{**dict(zip(COLUMNS, row, strict=True)), "data": from_json(row[-1])}) for row in rows]

    def _trim(self) -> None:
        """Delete the oldest events, in batches: a delete per append would double its cost."""
        if self._num_events < self._max_events + self._trim_batch:
            return
        self._writer.execute(
            "DELETE FROM events WHERE seq <= (SELECT seq FROM events ORDER BY seq DESC LIMIT 1 OFFSET ?)",
            (self._max_events,),
        )
        self._num_events = self._max_events

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite gives its side files the mode of the main one: nobody else reads who did what.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise JournalError(f"the journal {self._path} cannot be opened: {error.strerror}") from error
        self._writer = self._connect()
        try:
            self._check()
            self._reader = self._connect()
        except (sqlite3.Error, _CorruptError) as error:
            self._writer.close()
            # An OperationalError is the disk's or another process's doing: the file itself may be sound.
            if isinstance(error, sqlite3.OperationalError):
                raise JournalError(f"the journal {self._path} cannot be opened: {error}") from error
            raise _CorruptError(str(error)) from error

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )

    def _check(self) -> None:
        """Set up the writer and learn where the file stands."""
        run = self._writer.execute
        if (verdict := run("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise _CorruptError(str(verdict))
        columns = tuple(row[1] for row in run("PRAGMA table_info(events)"))
        if columns not in ((), COLUMNS):
            raise _CorruptError("its table of events has other columns")
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=NORMAL")
        run(SCHEMA)
        # sqlite_sequence remembers the largest number also when every row is gone.
        row = run("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
        self._last_seq = int(row[0]) if row else 0
        self._num_events = int(run("SELECT COUNT(*) FROM events").fetchone()[0])

    def _move_aside(self) -> Path:
        stamp = int(self._clock() * 1000)
        moved_to = self._path.with_name(f"{self._path.name}.damaged-{stamp}")
        self._path.replace(moved_to)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self._path}{suffix}").replace(f"{moved_to}{suffix}")
        return moved_to

    def _raise_next_seq(self) -> None:
        """Begin above every number the lost file can have given out: milliseconds outrun events."""
        floor = int(self._clock() * 1000)
        self._writer.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', ?)", (floor,))
        self._last_seq = floor


def _encode(data: Mapping[str, Any]) -> bytes:
    """Return an event's data as JSON: what JSON cannot say becomes null or text; too much is left out."""
    blob = to_json(dict(data), inf_nan_mode="null", serialize_unknown=True)
    if len(blob) > MAX_DATA_BYTES:
        return to_json({"left_out": f"{len(blob)} bytes of data, {MAX_DATA_BYTES} at most are kept"})
    return blob
