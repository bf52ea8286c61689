"""The cluster manager without processes: what it writes down, what it tells API servers, what it supervises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llumnix.cluster import ledger as ledgers
from llumnix.cluster.api_server_pool import ApiServerPool, ApiServerState
from llumnix.cluster.instance_pool import InstancePool
from llumnix.cluster.ledger import Ledger
from llumnix.cluster.manager import ClusterManager
from llumnix.config import parse_config
from llumnix.core.events import InstancePlaced, InstanceState
from llumnix.wire import ipc_endpoints


@dataclass
class World:
    """Stands for Ray, for the disk and for the journal."""

    started: list[int] = field(default_factory=list)
    killed: list[Any] = field(default_factory=list)
    disk_works: bool = True
    written: list[Ledger] = field(default_factory=list)

    def write_down(self, ledger: Ledger) -> bool:
        if self.disk_works:
            self.written.append(ledger)
        return self.disk_works


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    async def serve(pool: ApiServerPool, state: ApiServerState) -> str:
        await asyncio.Event().wait()
        return "never"

    monkeypatch.setattr(InstancePool, "start", lambda pool, instance, uid: made.started.append(uid))
    monkeypatch.setattr(InstancePool, "adopt", lambda pool, uid: None)
    monkeypatch.setattr(ApiServerPool, "_one_process", serve)
    return made


@pytest.fixture
async def manager(world: World, tmp_path: Path) -> AsyncIterator[ClusterManager]:
    config = parse_config({"instances": {"count": 2}})
    ledger = ledgers.new_ledger(config, "00ff", ipc_endpoints(tmp_path, 1), next_uid=1)
    made = ClusterManager(config, ledger, "tiny", tmp_path, lambda *event: None, world.write_down)
    yield made
    await made.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_ledger_that_the_disk_refused_is_written_later_though_nothing_changes(
    manager: ClusterManager, world: World
) -> None:
    world.disk_works = False
    manager.start()
    await asyncio.sleep(0.3)
    assert world.started == [1, 2] and world.written == []
    manager.handle(InstancePlaced(1, "n0", 7))
    assert manager.scheduler.instances()[0].state is InstanceState.STARTING
    world.disk_works = True
    await until(lambda: world.written)
    assert world.written[-1].next_uid == 3 and manager.failed_task() is None


async def test_a_pools_task_that_fails_does_not_go_unnoticed(
    manager: ClusterManager, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> str:
        raise RuntimeError("broken")

    manager.start()
    assert manager.failed_task() is None
    manager.instances._keep(broken())
    await until(manager.failed_task)
    assert str(manager.failed_task()) == "broken"


async def test_an_api_servers_supervision_that_fails_does_not_go_unnoticed(
    manager: ClusterManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> str:
        raise RuntimeError("broken")

    monkeypatch.setattr(ApiServerPool, "_one_process", broken)
    manager.start()
    await until(manager.failed_task)
