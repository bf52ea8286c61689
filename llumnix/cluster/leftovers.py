"""What a run of the cluster leaves on this machine, and how to find and end exactly that.

Every process of a run inherits its marker, the environment variable LLUMNIX_RUN_ID; every file of a run lies
in a directory of its own. The record in the state directory is written before either exists.

vLLM's workers share memory under names in a common place, and may be killed before they remove it: so each
instance has a directory in the run's for its temporary files, with a note of that memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from llumnix.errors import LlumnixError, StartupError

RUN_ID_VARIABLE = "LLUMNIX_RUN_ID"
RECORD_FILE_NAME = "run.json"
OWNER_FILE_NAME = ".llumnix-run"

_SHM_DIR = Path("/dev/shm")
_POLL_S = 0.02
_KILL_TIMEOUT_S = 10.0
_HEAD_SERVER = "gcs_server"
_ENGINE_DIR_PREFIX = "engine-"
_SHARED_MEMORY_NOTE = "shared-memory"


@dataclass(frozen=True)
class RunRecord:
    """One run of a Ray node by llumnixd: its marker, its directories and when it began."""

    run_id: str
    temp_dir: str
    shm_dir: str
    started_unix_s: float
    node: dict[str, Any] | None = None
    """Fields of its RayNode, once that is up."""
    ray: dict[str, str] | None = None
    """Digests of the settings [ray] that it was started with."""


@dataclass(frozen=True)
class Leftover:
    """A process of a run that was ended."""

    pid: int
    name: str
    killed: bool  # SIGTERM was not enough


def new_run(base_dir: Path = Path("/tmp")) -> RunRecord:
    """Name a run that is to be started; its temp_dir is short, since Unix socket paths end at 107 bytes."""
    run_id = secrets.token_hex(6)
    return RunRecord(run_id, str(base_dir / f"llx-{run_id}"), str(shm_dir(run_id)), time.time())


def shm_dir(run_id: str) -> Path:
    """Directory for all shared-memory files of a run."""
    return _SHM_DIR / f"llx-{run_id}"


def record_run(state_dir: Path, run: RunRecord) -> None:
    """Write the record of a run, whole or not at all; call it before anything of the run exists."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = state_dir / f"{RECORD_FILE_NAME}.partial"
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(run), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(state_dir / RECORD_FILE_NAME)


def read_run(state_dir: Path) -> RunRecord | None:
    """The run that was recorded last and not forgotten, or None; StartupError on a record without sense."""
    path = state_dir / RECORD_FILE_NAME
    try:
        fields = json.loads(path.read_text())
        run = RunRecord(**fields)
        int(run.run_id, 16)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StartupError(
            f"{path} is no record of a run ({error}): see that nothing of it runs, then remove the file."
        ) from error
    return run


def forget_run(state_dir: Path) -> None:
    """Remove the record, once nothing of the run is left."""
    (state_dir / RECORD_FILE_NAME).unlink(missing_ok=True)


def clean_previous_run(state_dir: Path, grace_s: float = 5.0) -> list[Leftover]:
    """End and remove all that the recorded run left behind; call it under the ClusterLock."""
    run = read_run(state_dir)
    if run is None:
        return []
    ended = end(run.run_id, grace_s)
    remove_files(run.run_id, Path(run.temp_dir))
    forget_run(state_dir)
    return ended


def find(run_id: str) -> list[psutil.Process]:
    """Living processes that carry the run's marker, other than this one and its ancestors."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for pid in psutil.pids():
        if pid in spared:
            continue
        try:
            # Before the look at its environment: from here on it is known by its age.
            process = psutil.Process(pid)
        except psutil.NoSuchProcess:
            continue
        if lives(run_id, pid):
            found.append(process)
    return found


def lives(run_id: str, pid: int) -> bool:
    """Whether a process of the run has this pid; a zombie, or one of another user, is none."""
    marker = f"{RUN_ID_VARIABLE}={run_id}".encode()
    try:
        return marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return False


def end(run_id: str, grace_s: float) -> list[Leftover]:
    """SIGTERM a run's processes, SIGKILL those that live on after `grace_s`; LlumnixError if one survives.

    The shared-memory files that they alone had mapped are removed.
    """
    alive = find(run_id)
    shared_memory = shared_memory_of(alive)
    names: dict[int, str] = {}
    asked: set[int] = set()
    deadline = time.monotonic() + grace_s
    while alive and time.monotonic() < deadline:
        names |= {process.pid: _name(process) for process in alive if process.pid not in names}
        fresh = [process for process in _next_to_end(alive) if process.pid not in asked]
        asked |= _signal(fresh, signal.SIGTERM)
        time.sleep(_POLL_S)
        alive = find(run_id)
    killed: set[int] = set()
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while alive and time.monotonic() < deadline:
        names |= {process.pid: _name(process) for process in alive if process.pid not in names}
        killed |= _signal(alive, signal.SIGKILL)
        time.sleep(_POLL_S)
        alive = find(run_id)
    if alive:
        pids = ", ".join(str(process.pid) for process in alive)
        raise LlumnixError(f"Processes {pids} of run {run_id} could not be ended, even by SIGKILL.")
    for path in shared_memory:
        path.unlink(missing_ok=True)
    return [Leftover(pid, name, pid in killed) for pid, name in sorted(names.items())]


def shared_memory_of(processes: list[psutil.Process]) -> list[Path]:
    """Files in /dev/shm that these processes have mapped and no other process has (vLLM's, torch's, ours)."""
    pids = {process.pid for process in processes}
    ours: set[int] = set().union(*(_mapped_shared_memory(pid) for pid in pids))
    if not ours:
        return []
    for pid in psutil.pids():
        if pid not in pids:
            ours -= _mapped_shared_memory(pid)
    return [Path(entry.path) for entry in os.scandir(_SHM_DIR) if entry.inode() in ours]


def enter_engine_dir(run_id: str) -> None:
    """Have this process and its children keep temporary files apart; what dead engines left is removed."""
    temp_dir = Path(tempfile.gettempdir())
    _remove_dead_engines(run_id, temp_dir)
    own = temp_dir / f"{_ENGINE_DIR_PREFIX}{os.getpid()}"
    own.mkdir(mode=0o700)
    os.environ["TMPDIR"] = tempfile.tempdir = str(own)


def note_shared_memory() -> None:
    """Write down what this process and its children share by name; call it once they are all there."""
    paths = shared_memory_of([psutil.Process(), *psutil.Process().children(recursive=True)])
    Path(tempfile.gettempdir(), _SHARED_MEMORY_NOTE).write_text("\n".join(map(str, paths)))


def _remove_dead_engines(run_id: str, temp_dir: Path) -> None:
    for directory in temp_dir.glob(f"{_ENGINE_DIR_PREFIX}*"):
        if lives(run_id, int(directory.name.removeprefix(_ENGINE_DIR_PREFIX))):
            continue
        # It shared none, or another engine that starts is at it too.
        with contextlib.suppress(FileNotFoundError):
            for path in (directory / _SHARED_MEMORY_NOTE).read_text().splitlines():
                Path(path).unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)


def remove_files(run_id: str, temp_dir: Path) -> None:
    """Remove the run's directories; one that does not say it belongs to this run is left alone."""
    if owns(run_id, temp_dir):
        _remove_dead_engines(run_id, temp_dir)
    for directory in (shm_dir(run_id), temp_dir):
        if owns(run_id, directory):
            shutil.rmtree(directory)


def claim(run_id: str, directory: Path) -> None:
    """Make a private directory of the run; StartupError if something is in its place."""
    try:
        directory.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise StartupError(f"Directory {directory} cannot be made: {error.strerror}.") from error
    (directory / OWNER_FILE_NAME).write_text(run_id)


def owns(run_id: str, directory: Path) -> bool:
    """Whether claim() made the directory for this run (the run may have died before it could mark it)."""
    try:
        return (directory / OWNER_FILE_NAME).read_text() == run_id
    except FileNotFoundError:
        return directory.is_dir() and directory.name == f"llx-{run_id}" and not any(directory.iterdir())


def _next_to_end(processes: list[psutil.Process]) -> list[psutil.Process]:
    """All but the head's server, which comes last: a raylet that has lost it does not end on SIGTERM."""
    return [process for process in processes if _name(process) != _HEAD_SERVER] or processes


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return "gone"


def _signal(processes: list[psutil.Process], signum: signal.Signals) -> set[int]:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signum)
    return {process.pid for process in processes}


def _mapped_shared_memory(pid: int) -> set[int]:
    """Inodes: a semaphore is mapped under a name that it has only while it is made."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()
    return {int(line.split()[4]) for line in maps.splitlines() if f" {_SHM_DIR}/" in line}
