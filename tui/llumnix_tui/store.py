"""The data behind the screens: the last snapshot, its history, the journal's tail, and the connection."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from llumnix.admin.schema import Event
from llumnix_tui.snapshot import History, Snapshot

MAX_EVENTS = 2000
ConnectionState = Literal["connecting", "live", "lost", "replay", "replayed"]


@dataclass(frozen=True)
class Connection:
    """How the data come in; the rest tells of a lost connection."""

    state: ConnectionState = "connecting"
    retries: int = 0
    error: str = ""
    # The daemon answers, but not to this token.
    refused: bool = False


class Store:
    """Kept by a source, read by the screens, on one event loop; calls `changed` after each change."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self.snapshot: Snapshot | None = None
        self.history = History()
        # The newest first.
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.connection = Connection()
        # What operators are told once, besides what the screens show.
        self.warnings: deque[str] = deque()
        self.changed = changed

    @property
    def last_seq(self) -> int | None:
        """The number of the latest event, None before the first."""
        return self.events[0].seq if self.events else None

    @property
    def stale(self) -> bool:
        """Whether what is shown may no longer be true."""
        return self.connection.state in ("connecting", "lost")

    def take(self, snapshot: Snapshot, state: ConnectionState = "live") -> None:
        """Replace the snapshot and sample it."""
        self.snapshot = snapshot
        self.history.add(snapshot)
        self.connection = Connection(state)
        self.changed()

    def add_events(self, events: Iterable[Event]) -> None:
        """Append events in their order; one that is known already is left out."""
        last = self.last_seq or 0
        fresh = [event for event in events if event.seq > last]
        if fresh:
            self.events.extendleft(fresh)
            self.changed()

    def forget_events(self) -> None:
        """Drop the journal's tail: the daemon began a new journal."""
        self.events.clear()
        self.changed()

    def lost(self, error: str, *, refused: bool = False) -> None:
        """Note that a round failed; the data stay, and age."""
        before = self.connection
        if before.state == "lost":
            self.connection = Connection("lost", before.retries + 1, error, refused)
        else:
            self.connection = Connection("lost", 1, error, refused)
            self.warnings.append(error)
        self.changed()

    def ended(self) -> None:
        """Note that a replay has come to its end."""
        self.connection = replace(self.connection, state="replayed")
        self.changed()
