"""Finding and ending what a run left behind, and nothing else: real processes, real Ray clusters."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llumnix.cluster import leftovers, ray_driver, ray_node
from llumnix.errors import StartupError

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""
ROOT = Path(__file__).parents[2]
PLAIN = "import time; print('up', flush=True); time.sleep(60)"
MAPPING = """
import mmap, time
files = [open(path, "r+b") for path in {}]
maps = [mmap.mmap(file.fileno(), 64) for file in files]
print("up", flush=True)
time.sleep(60)
"""

ENGINE = """
import os, subprocess, sys, time
from llumnix.cluster import leftovers
leftovers.enter_engine_dir(os.environ[leftovers.RUN_ID_VARIABLE])
worker = subprocess.Popen([sys.executable, "-c", {!r}], stdout=subprocess.PIPE)
worker.stdout.readline()
leftovers.note_shared_memory()
print("up", flush=True)
time.sleep(60)
"""

DAEMON = """
import dataclasses, json, os, sys, time
from pathlib import Path
from llumnix.cluster import leftovers, ray_driver, ray_node

state_dir = Path(sys.argv[1])
run = leftovers.new_run()
leftovers.record_run(state_dir, run)
node = ray_node.start_head(
    temp_dir=Path(run.temp_dir), node_ip="127.0.0.1", port=None, num_cpus=1, num_gpus=0, dashboard=False,
    token="a" * 64, run_id=run.run_id, env={},
)
ray_driver.connect(node, "llumnix")
import ray

@ray.remote
class Instance:
    def pid(self):
        return os.getpid()

actor = Instance.options(name="instance-0", lifetime="detached").remote()
pid = ray.get(actor.pid.remote())
print(json.dumps({"node": dataclasses.asdict(node), "actor_pid": pid}, default=str), flush=True)
time.sleep(120)
"""


@pytest.fixture
def spawn() -> Iterator:
    """Start a Python program that carries a run's marker; all are gone after the test."""
    processes: list[subprocess.Popen] = []

    def start(run_id: str, code: str = PLAIN) -> subprocess.Popen:
        env = os.environ | {leftovers.RUN_ID_VARIABLE: run_id}
        process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "up\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def pids_of(run_id: str) -> set[int]:
    return {process.pid for process in leftovers.find(run_id)}


def test_only_processes_of_the_run_are_found(spawn) -> None:
    ours, twin, other = leftovers.new_run().run_id, leftovers.new_run().run_id, leftovers.new_run().run_id
    first, second, _ = spawn(ours), spawn(ours), spawn(other)
    assert pids_of(ours) == {first.pid, second.pid}
    assert pids_of(ours[:-1]) == set(), "a run whose id begins alike"
    assert pids_of(twin) == set()


def test_the_searching_process_and_its_ancestors_are_spared() -> None:
    run_id = leftovers.new_run().run_id
    code = f"from llumnix.cluster import leftovers; print(leftovers.end('{run_id}', 1.0))"
    script = f'{sys.executable} -c "{code}"; echo parent lives'
    env = os.environ | {leftovers.RUN_ID_VARIABLE: run_id}
    done = subprocess.run(["sh", "-c", script], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "parent lives"], done.stderr


def test_ending_a_run_kills_only_what_ignores_sigterm_and_nothing_of_others(spawn) -> None:
    ours, other = leftovers.new_run().run_id, leftovers.new_run().run_id
    plain, stubborn, foreign = spawn(ours), spawn(ours, STUBBORN), spawn(other)
    ended = {leftover.pid: leftover.killed for leftover in leftovers.end(ours, grace_s=0.5)}
    assert ended == {plain.pid: False, stubborn.pid: True}
    assert plain.wait() == -signal.SIGTERM
    assert stubborn.wait() == -signal.SIGKILL
    assert foreign.poll() is None
    assert leftovers.end(ours, grace_s=0.5) == []


def test_shared_memory_is_removed_unless_a_process_of_no_run_uses_it(spawn) -> None:
    run_id = leftovers.new_run().run_id
    alone, shared = Path(f"/dev/shm/llx-test-{run_id}-alone"), Path(f"/dev/shm/llx-test-{run_id}-shared")
    try:
        for path in (alone, shared):
            path.write_bytes(bytes(64))
        with shared.open("r+b") as file, mmap.mmap(file.fileno(), 64):
            spawn(run_id, MAPPING.format([str(alone), str(shared)]))
            leftovers.end(run_id, grace_s=5.0)
            assert not alone.exists()
            assert shared.exists()
    finally:
        alone.unlink(missing_ok=True)
        shared.unlink(missing_ok=True)


def test_what_a_killed_engine_left_goes_with_the_next_start_on_its_node_or_with_the_run(
    spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that its workers shared by name, too; what a living one has stays."""
    run_id, run_dir = leftovers.new_run().run_id, tmp_path / "run"
    leftovers.claim(run_id, run_dir)
    monkeypatch.setenv("TMPDIR", str(run_dir))
    shared = [Path(f"/dev/shm/llx-test-{run_id}-{k}") for k in range(3)]

    def engine(path: Path) -> subprocess.Popen:
        path.write_bytes(bytes(64))
        return spawn(run_id, ENGINE.format(MAPPING.format([str(path)])))

    try:
        dead, living = engine(shared[0]), engine(shared[1])
        kill_with_children(dead)
        following = engine(shared[2])
        assert [path.exists() for path in shared] == [False, True, True]
        present = {path.name for path in run_dir.glob("engine-*")}
        assert present == {f"engine-{living.pid}", f"engine-{following.pid}"}
        kill_with_children(living)
        kill_with_children(following)
        leftovers.remove_files(run_id, run_dir)
        assert not run_dir.exists() and not any(path.exists() for path in shared)
    finally:
        for path in shared:
            path.unlink(missing_ok=True)


def kill_with_children(process: subprocess.Popen) -> None:
    for each in [*psutil.Process(process.pid).children(), process]:
        each.kill()
    process.wait()


def test_only_directories_of_the_run_are_removed(tmp_path: Path) -> None:
    run_id, other = leftovers.new_run().run_id, leftovers.new_run().run_id
    ours, foreign, unmarked = tmp_path / "ours", tmp_path / "foreign", tmp_path / "unmarked"
    leftovers.claim(run_id, ours)
    leftovers.claim(other, foreign)
    unmarked.mkdir()
    (unmarked / "precious").touch()
    for directory in (ours, foreign, unmarked):
        leftovers.remove_files(run_id, directory)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["foreign", "unmarked"]


def test_a_directory_that_was_made_but_not_yet_marked_is_removed(tmp_path: Path) -> None:
    run = leftovers.new_run(tmp_path)
    Path(run.temp_dir).mkdir()
    leftovers.remove_files(run.run_id, Path(run.temp_dir))
    assert not Path(run.temp_dir).exists()


def test_a_run_does_not_take_over_an_existing_directory(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=str(tmp_path)):
        leftovers.claim(leftovers.new_run().run_id, tmp_path)


def test_the_record_of_a_run_is_read_back_and_forgotten(tmp_path: Path) -> None:
    state_dir, run = tmp_path / "state", leftovers.new_run()
    leftovers.record_run(state_dir, run)
    assert leftovers.read_run(state_dir) == run
    assert [path.name for path in state_dir.iterdir()] == ["run.json"]
    leftovers.forget_run(state_dir)
    assert leftovers.read_run(state_dir) is None
    assert leftovers.clean_previous_run(state_dir) == []


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"run_id": "x y", "temp_dir": "", "shm_dir": "", "started_unix_s": 0}']
)
def test_a_record_that_makes_no_sense_is_reported_not_guessed_at(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(StartupError, match=r"run\.json"):
        leftovers.clean_previous_run(tmp_path)
    assert (tmp_path / "run.json").exists()


def test_a_killed_daemon_leaves_a_cluster_that_can_be_used_then_cleaned_beside_another(
    tmp_path: Path,
) -> None:
    """Detached actors live on, a driver with the token finds them, cleaning ends all of that run alone."""
    other_run = leftovers.new_run()
    command = [sys.executable, "-c", DAEMON, tmp_path]
    daemon = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    other = None
    try:
        other = ray_node.start_head(
            temp_dir=Path(other_run.temp_dir),
            node_ip="127.0.0.1",
            port=None,
            num_cpus=1,
            num_gpus=0,
            dashboard=False,
            token="b" * 64,
            run_id=other_run.run_id,
            env={},
        )
        started = json.loads(daemon.stdout.readline())
        daemon.kill()
        daemon.wait()
        paths = {name: Path(started["node"][name]) for name in ("temp_dir", "logs_dir")}
        node = ray_node.RayNode(**(started["node"] | paths))
        assert call_pid_of_detached_actor(node) == started["actor_pid"]

        run = leftovers.read_run(tmp_path)
        others_pids = pids_of(other_run.run_id)
        assert {node.raylet_pid, node.gcs_pid, started["actor_pid"]} <= pids_of(run.run_id)
        ended = {leftover.pid for leftover in leftovers.clean_previous_run(tmp_path)}
        assert {node.raylet_pid, node.gcs_pid, started["actor_pid"]} <= ended
        assert pids_of(run.run_id) == set()
        assert not Path(run.temp_dir).exists() and not Path(run.shm_dir).exists()
        assert leftovers.read_run(tmp_path) is None
        assert {other.raylet_pid, other.gcs_pid} <= others_pids & pids_of(other_run.run_id)
        assert psutil.Process(other.raylet_pid).is_running() and other.temp_dir.exists()
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
        leftovers.clean_previous_run(tmp_path)
        if other is not None:
            ray_node.stop(other, grace_s=5.0)


def call_pid_of_detached_actor(node: ray_node.RayNode) -> int:
    import ray

    ray_driver.connect(node, "llumnix")
    try:
        return ray.get(ray.get_actor("instance-0").pid.remote())
    finally:
        ray_driver.disconnect()
