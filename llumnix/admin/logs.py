"""The ends of the log files that the processes of one machine write."""

from pathlib import Path
from typing import Final

from llumnix.errors import UnknownTargetError

MAX_LINES: Final = 10_000
MAX_BYTES: Final = 4 * 1024 * 1024
"""Of a file's end that is looked at."""
_SUFFIX: Final = ".log"


class LogDir:
    """A directory of NAME.log files; methods read from disk and may block."""

    def __init__(self, path: Path, machine: str = "the daemon's machine") -> None:
        """`machine`: what errors call it."""
        self._path = path
        self._machine = machine

    def names(self) -> list[str]:
        """Return what has a log here."""
        return sorted(path.stem for path in self._path.glob(f"*{_SUFFIX}"))

    def tail(self, name: str, num_lines: int) -> tuple[str, ...]:
        """Return the last lines; UnknownTargetError where there is no such log here."""
        # Only names that the directory lists: none leads out of it.
        if name not in self.names():
            raise UnknownTargetError(f"there is no log of {name!r} on {self._machine}")
        try:
            with (self._path / f"{name}{_SUFFIX}").open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - MAX_BYTES))
                lines = file.read().decode("utf-8", errors="replace").splitlines()
        except OSError as error:
            raise UnknownTargetError(f"the log of {name!r} cannot be read: {error.strerror}") from error
        # The first of what was read may be the end of a line only.
        return tuple(lines[1:] if size > MAX_BYTES else lines)[-num_lines:]
