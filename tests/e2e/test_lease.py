"""Instances that nobody can reach any more end themselves (migration.lease_s)."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from tests.e2e.running import launch, settings, wait_for

LEASE_S = 3.0


def test_instances_without_manager_and_api_servers_end_themselves(tmp_path: Path) -> None:
    config = settings(tmp_path / "state", migration={"lease_s": LEASE_S}, instances={"count": 2})
    cluster = launch(config, tmp_path)
    try:
        cluster.wait_ready()
        instances = [psutil.Process(item["pid"]) for item in cluster.instances().values()]
        servers = cluster.api_servers()
        cluster.process.kill()
        cluster.process.wait()
        time.sleep(2 * LEASE_S)  # or however much longer it takes: nothing is to happen
        assert all(p.is_running() for p in instances), "the manager's death alone ends nobody"
        for server in servers:
            psutil.Process(server["pid"]).kill()
        wait_for(
            lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in instances),
            LEASE_S + 60,
            "the instances have ended",
        )
    finally:
        cluster.end()
