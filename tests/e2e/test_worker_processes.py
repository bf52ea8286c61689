"""An instance whose model lies in two worker processes: whoever is killed, nothing of it stays."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from llumnix.cluster import leftovers
from tests.e2e.running import RunningCluster, running, settings, wait_for
from tests.e2e.streams import Stream

START_S = 240.0


@dataclass(frozen=True)
class Traces:
    """What one incarnation of an instance has on the machine."""

    pid: int
    processes: list[psutil.Process]
    """Its own first; then the workers and their helper."""
    shared_memory: list[Path]
    directory: Path

    @property
    def workers(self) -> list[psutil.Process]:
        return [process for process in self.processes[1:] if "resource_tracker" not in str(process.cmdline())]

    def left(self) -> list[str]:
        """What of it is still there; a zombie is nothing any more."""
        alive = [p for p in self.processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        return [
            *map(str, alive),
            *(str(path) for path in (*self.shared_memory, self.directory) if path.exists()),
        ]


def traces(cluster: RunningCluster) -> Traces:
    """Of instance i0, which serves."""
    instance = psutil.Process(cluster.instances()["i0"]["pid"])
    processes = [instance, *instance.children(recursive=True)]
    (run_id,) = cluster.run_ids
    found = Traces(
        instance.pid,
        processes,
        leftovers.shared_memory_of(processes),
        Path(f"/tmp/llx-{run_id}/engine-{instance.pid}"),
    )
    assert len(found.workers) == 2, [process.cmdline() for process in processes]
    assert found.shared_memory and found.directory.is_dir()
    return found


def assert_nothing_stays(found: Traces) -> None:
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not found.left(), START_S, "nothing is left")
    assert found.left() == []


def assert_sockets_lie_in_the_runs_directory(found: Traces) -> None:
    paths = [c.laddr for p in found.processes for c in p.net_connections("unix") if c.laddr.startswith("/")]
    assert [path for path in paths if found.directory.parent not in Path(path).parents] == []


@pytest.mark.timeout(900)
def test_nothing_stays_of_an_instance_that_was_killed_or_whose_worker_was(tmp_path: Path) -> None:
    config = settings(
        tmp_path / "state",
        engine={"tensor_parallel_size": 2},
        instances={"count": 1, "cpus_per_instance": 2, "restart_backoff_s": 0.1},
        migration={"resume_timeout_s": START_S},
    )
    # Else vLLM wants a NUMA node for each rank.
    with running(config, tmp_path, env={"VLLM_CPU_OMP_THREADS_BIND": "nobind"}) as cluster:
        killed = traces(cluster)
        assert_sockets_lie_in_the_runs_directory(killed)
        # Workers that wait for each other inside a step hear of nothing else.
        streams = [Stream(cluster, 200) for _ in range(2)]
        wait_for(lambda: all(stream.chunks for stream in streams), 60, "both streams run")
        killed.processes[0].kill()
        assert_nothing_stays(killed)
        for stream in streams:
            stream.assert_undisturbed(START_S)

        failed = traces(cluster)
        failed.workers[1].kill()
        assert_nothing_stays(failed)
