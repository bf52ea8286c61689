"""One llumnixd per state directory: real processes, real file locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llumnix.cluster.lock import ClusterLock
from llumnix.errors import StartupError

HOLDER = """
import sys, time
from pathlib import Path
from llumnix.cluster.lock import ClusterLock
ClusterLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock of tmp_path."""
    command = [sys.executable, "-c", HOLDER, tmp_path]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(
    tmp_path: Path, holder: subprocess.Popen
) -> None:
    with pytest.raises(StartupError) as caught:
        ClusterLock(tmp_path).acquire()
    assert f"pid {holder.pid}" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_killed_daemon_holds_nothing(tmp_path: Path, holder: subprocess.Popen) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with ClusterLock(tmp_path):
        assert (tmp_path / "llumnixd.lock").read_text() == f"{os.getpid()}\n"


def test_daemons_on_different_state_directories_do_not_meet(tmp_path: Path, holder: subprocess.Popen) -> None:
    with ClusterLock(tmp_path / "other"):
        assert holder.poll() is None


def test_the_lock_can_be_taken_again_after_release(tmp_path: Path) -> None:
    lock = ClusterLock(tmp_path)
    with lock, pytest.raises(StartupError):
        ClusterLock(tmp_path).acquire()
    with ClusterLock(tmp_path):
        pass


def test_programs_started_under_the_lock_do_not_hold_it_on(tmp_path: Path) -> None:
    lock = ClusterLock(tmp_path)
    lock.acquire()
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        lock.release()
        with ClusterLock(tmp_path):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_forked_child_does_not_hold_the_lock_on(tmp_path: Path) -> None:
    lock = ClusterLock(tmp_path)
    lock.acquire()
    ready, forked = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(forked, b"x")
        signal.pause()
        os._exit(0)
    try:
        os.read(ready, 1)
        lock.release()
        with ClusterLock(tmp_path):
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(forked)


def test_forking_leaves_the_lock_with_the_parent(tmp_path: Path) -> None:
    with ClusterLock(tmp_path):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(StartupError):
            ClusterLock(tmp_path).acquire()
