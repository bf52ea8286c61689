"""One llumnixd per cluster: an advisory lock on a file of the state directory."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType

from llumnix.errors import StartupError

LOCK_FILE_NAME = "llumnixd.lock"

_held: weakref.WeakSet[ClusterLock] = weakref.WeakSet()


class ClusterLock:
    """The right to run a cluster on one state directory, from acquire() until release() or the process's end.

    The kernel lets go of the lock when the process dies, however it dies; children never hold it: exec closes
    the descriptor, and a child made by fork alone closes it first thing.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock; StartupError names the pid that holds it."""
        if self._fd is not None:
            raise StartupError(f"This process already holds the lock of {self._state_dir}.")
        self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self._state_dir / LOCK_FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode().strip() or "unknown"
            os.close(fd)
            raise StartupError(
                f"Another llumnixd (pid {holder}) already runs the cluster of {self._state_dir}: "
                "stop it first, or set another cluster.state_dir."
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd
        _held.add(self)

    def release(self) -> None:
        """Let go of the lock; the file stays, or two processes could each lock a file of that name."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            _held.discard(self)

    def __enter__(self) -> ClusterLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _release_in_forked_child() -> None:
    # Closing the child's copy leaves the parent's lock alone: it belongs to the open file.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_forked_child)
