"""Program that starts the processes of one Ray node and exits; ray_node runs it by its path.

It does what the command `ray start` does, a ray._private.node.Node whose processes outlive their parent, but
without that command's 2.5 s of imports, its rewriting of loopback addresses, and the processes that llumnix
has no use for.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any

import psutil
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.utils import get_dashboard_dependency_error
from ray._raylet import (  # type: ignore[attr-defined]
    DASHBOARD_AGENT_LISTEN_PORT_NAME,
    METRICS_AGENT_PORT_NAME,
    METRICS_EXPORT_PORT_NAME,
    GcsClient,
    persist_port,
)

_UNUSED = -1  # what Ray's own agent writes for a port it does not open
_AGENT_PORTS = (METRICS_AGENT_PORT_NAME, METRICS_EXPORT_PORT_NAME, DASHBOARD_AGENT_LISTEN_PORT_NAME)
_PROBE_TIMEOUT_S = 5


class LeanNode(Node):
    """Ray's node without its API server, registered before its agents have finished importing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Start the node; end this program as soon as one of its processes dies (Ray would wait for 30 s)."""
        threading.Thread(target=self._exit_when_a_process_dies, daemon=True).start()
        super().__init__(*args, **kwargs)

    def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
        """Start the dashboard only if it is wanted (Ray would start its process for usage statistics)."""
        if include_dashboard:
            super().start_api_server(include_dashboard=True, raise_on_failure=raise_on_failure)

    def start_raylet(self, *args: Any, **kwargs: Any) -> None:
        """Start the raylet without letting it wait for agents that open no port."""
        if get_dashboard_dependency_error() is not None:
            # The agent of a Ray without dashboard opens none of these ports, but says so only after seconds
            # of imports, and the raylet waits for it: say it in its place.
            for name in _AGENT_PORTS:
                persist_port(self._session_dir, self.node_id, name, _UNUSED)
        super().start_raylet(*args, **kwargs)

    def _exit_when_a_process_dies(self) -> None:
        while True:
            for kind, infos in list(getattr(self, "all_processes", {}).items()):
                code = infos[0].process.poll()
                if code is not None:
                    _report({"error": f"Ray's {kind} exited with code {code}"})
                    os._exit(1)
            time.sleep(0.05)


def _report(result: dict[str, object]) -> None:
    os.write(1, json.dumps(result).encode() + b"\n")


def _probe_head(address: str) -> None:
    """Ask the head one question: Node itself would retry for minutes where the answer is a refusal."""
    GcsClient(address=address).internal_kv_get(b"session_name", b"session", timeout=_PROBE_TIMEOUT_S)


def _renice_dashboard_agent(raylet_pid: int) -> None:
    # The raylet insists on this agent, though nothing uses it: its imports shall not slow the instances down.
    for child in psutil.Process(raylet_pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(part.endswith("dashboard/agent.py") for part in child.cmdline()):
                child.nice(19)


def _launch(params: dict[str, Any]) -> dict[str, object]:
    missing = get_dashboard_dependency_error()
    if params["include_dashboard"] and missing is not None:
        raise RuntimeError(f"the Ray dashboard needs the package ray[default] ({missing})")
    head = "gcs_address" not in params
    if not head:
        _probe_head(params["gcs_address"])
    node = LeanNode(RayParams(**params), head=head, shutdown_at_exit=False, spawn_reaper=False)
    pids = {kind: infos[0].process.pid for kind, infos in node.all_processes.items()}
    _renice_dashboard_agent(pids["raylet"])
    return {
        "address": node.gcs_address,
        "node_id": node.node_id,
        "logs_dir": node.get_logs_dir_path(),
        "gcs_pid": pids.get("gcs_server"),
        "raylet_pid": pids["raylet"],
    }


def main() -> int:
    """Start a node from the RayParams in the first argument; print what runs, or why not (all as JSON)."""
    try:
        result = _launch(json.loads(sys.argv[1]))
    except Exception as error:  # noqa: BLE001 - the caller gets it, whatever it is
        sentence = " ".join(str(error).split()).split(". ")[0]
        _report({"error": sentence or type(error).__name__})
        return 1
    _report(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
