"""A vLLM plugin for tests that lets one instance's engine loop hang, be busy or fail.

It is found as vLLM finds any general plugin, by an entry point on PYTHONPATH, and reached by vLLM's
`/collective_rpc` (VLLM_SERVER_DEV_MODE=1). Every method takes effect only in the process `pid`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.running import RunningCluster


def install() -> None:
    """Called by vLLM in each of its processes, before it builds a worker."""
    from vllm.v1.worker.cpu_worker import CPUWorker

    for method in (block_loop, block_step, spin_step, fail_step):
        setattr(CPUWorker, method.__name__, method)


def block_loop(_worker: Any, pid: int, seconds: float) -> None:
    """The engine loop sleeps, in an engine-wide call."""
    if os.getpid() == pid:
        time.sleep(seconds)


def block_step(worker: Any, pid: int, seconds: float) -> None:
    """The next model step sleeps."""
    if os.getpid() == pid:
        _before_next_step(worker, lambda: time.sleep(seconds))


def spin_step(worker: Any, pid: int, seconds: float) -> None:
    """The next model step is long and uses a whole CPU."""

    def spin() -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass

    if os.getpid() == pid:
        _before_next_step(worker, spin)


def fail_step(worker: Any, pid: int, message: str) -> None:
    """The next model step raises, in the way of errors that carry a whole history."""

    def fail() -> None:
        try:
            raise MemoryError(message)
        except MemoryError as cause:
            raise RuntimeError("the worker failed") from cause

    if os.getpid() == pid:
        _before_next_step(worker, fail)


def _before_next_step(worker: Any, action: Any) -> None:
    def once(*args: Any, **kwargs: Any) -> Any:
        del worker.execute_model  # back to that of the class
        action()
        return worker.execute_model(*args, **kwargs)

    worker.execute_model = once


def environment(directory: Path) -> dict[str, str]:
    """What llumnixd's environment needs for its engines to load the plugin; writes into `directory`."""
    distribution = directory / "llumnix_test_breaker-1.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: llumnix-test-breaker\nVersion: 1\n")
    (distribution / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\nbreaker = {__name__}:{install.__name__}\n"
    )
    root = Path(__file__).parents[2]
    return {"PYTHONPATH": f"{directory}{os.pathsep}{root}", "VLLM_SERVER_DEV_MODE": "1"}


def tell(cluster: RunningCluster, method: Any, *args: Any) -> httpx.Response:
    """Call one of this module's methods in all workers of the cluster."""
    body = {"method": method.__name__, "args": list(args)}
    return httpx.post(f"{cluster.url}/collective_rpc", json=body, timeout=60)
