"""What was shown, as JSON lines: one frame per snapshot, with the events that came since the one before."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from llumnix.admin.schema import Event
from llumnix_tui.snapshot import Snapshot
from llumnix_tui.store import Store


class RecordingError(Exception):
    """The file cannot be written, or is no recording; one sentence."""


class Frame(BaseModel):
    """One line of a recording."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    snapshot: Snapshot
    events: tuple[Event, ...] = ()


class Recorder:
    """Writes frames to a new file; a frame is in the file when `write` returns."""

    def __init__(self, path: Path) -> None:
        """Create the file; one that exists is not overwritten."""
        try:
            self._file = path.open("x", encoding="utf-8")
        except OSError as error:
            raise RecordingError(f"--record: cannot create {path}: {error.strerror}") from error
        self._last_seq = 0

    def write(self, snapshot: Snapshot, store: Store) -> None:
        """Append a snapshot and the store's events that are new; RecordingError where that fails."""
        events = [event for event in store.events if event.seq > self._last_seq][::-1]
        if events:
            self._last_seq = events[-1].seq
        try:
            self._file.write(Frame(snapshot=snapshot, events=tuple(events)).model_dump_json() + "\n")
            self._file.flush()
        except OSError as error:
            raise RecordingError(f"{self._file.name} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check(path: Path) -> None:
    """Raise RecordingError where a file cannot be read or does not begin with a frame."""
    try:
        first = next(frames(path), None)
    except OSError as error:
        raise RecordingError(f"--replay: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecordingError(f"--replay: {path} is no recording, expected JSON lines") from error
    if first is None:
        raise RecordingError(f"--replay: {path} holds no complete frame")


def frames(path: Path) -> Iterator[Frame]:
    """Yield a recording's frames; a last line that was cut off by a crash is left out."""
    with path.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, 1):
            if not text.endswith("\n"):
                return
            try:
                yield Frame.model_validate_json(text)
            except ValidationError as error:
                raise RecordingError(
                    f"--replay: line {number} of {path} is no frame of a recording"
                ) from error
