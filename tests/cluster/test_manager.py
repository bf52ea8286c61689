"""The cluster manager without processes: what it writes down, tells API servers, and supervises."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llumnix.cluster import ledger as ledgers
from llumnix.cluster.api_server_pool import ApiServerPool, ApiServerState
from llumnix.cluster.instance_pool import InstancePool
from llumnix.cluster.ledger import KnownApiServer, KnownEngine, KnownInstance, Ledger
from llumnix.cluster.manager import ClusterManager
from llumnix.config import parse_config
from llumnix.core.events import (
    AddInstances,
    CordonNode,
    Drain,
    DrainOrder,
    InstancePlaced,
    InstanceReady,
    InstanceState,
)
from llumnix.frontend.control_link import ControlLink
from llumnix.wire import FromManager, PeerAddress, StopServing, ipc_endpoints


@dataclass
class World:
    """Stands for Ray, for the disk and for the journal."""

    started: list[int] = field(default_factory=list)
    not_on: list[tuple[str, ...]] = field(default_factory=list)
    disk_works: bool = True
    api_server_ends: asyncio.Event = field(default_factory=asyncio.Event)
    written: list[Ledger] = field(default_factory=list)

    def start(self, instance: str, uid: int, not_on: tuple[str, ...]) -> None:
        self.started.append(uid)
        self.not_on.append(not_on)

    def write_down(self, ledger: Ledger) -> bool:
        if self.disk_works:
            self.written.append(ledger)
        return self.disk_works


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    async def serve(pool: ApiServerPool, state: ApiServerState) -> str:
        await made.api_server_ends.wait()
        return "told to"

    monkeypatch.setattr(InstancePool, "start", lambda pool, *start: made.start(*start))
    monkeypatch.setattr(InstancePool, "adopt", lambda pool, uid: None)
    monkeypatch.setattr(ApiServerPool, "_one_process", serve)
    return made


CONFIG = parse_config({"instances": {"count": 2, "max": 3}})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return ledgers.new_ledger(CONFIG, "00ff", ipc_endpoints(tmp_path, 1), next_uid=1)


@contextlib.asynccontextmanager
async def managing(ledger: Ledger, world: World) -> AsyncIterator[ClusterManager]:
    made = ClusterManager(CONFIG, ledger, "tiny", Path("/none"), lambda *event: None, world.write_down)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def manager(ledger: Ledger, world: World) -> AsyncIterator[ClusterManager]:
    async with managing(ledger, world) as made:
        yield made


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


async def test_a_stop_does_not_wait_for_an_api_server_that_never_came_up(manager: ClusterManager) -> None:
    manager.start()
    await asyncio.sleep(0.05)
    async with asyncio.timeout(2):
        await manager.drain_requests(30.0)


async def test_a_drain_goes_on_as_it_was_ordered_when_llumnixd_is_back(ledger: Ledger, world: World) -> None:
    engine = KnownEngine(b"", PeerAddress("ipc://peer", b""))
    order = DrainOrder(time.monotonic(), 60.0, remove=False, restart=True, abort_left=True)
    left = KnownInstance("i0", 1, 1, "n0", 7, cordoned=True, engine=engine, drain=order)
    async with managing(msgspec.structs.replace(ledger, instances=(left,)), world) as manager:
        manager.start()
        view = manager.scheduler.instance("i0")
        assert (view.state, view.drain) == (InstanceState.DRAINING, order)
        assert world.written[-1].instances[0].drain == order


async def test_what_a_drain_moves_is_counted_from_its_beginning(
    manager: ClusterManager, world: World
) -> None:
    manager.start()
    for uid in (1, 2):
        manager.handle(InstancePlaced(uid, "n0", 7))
    assert manager.migrations.drained(1) is None
    manager._engines[1] = manager._engines[2] = KnownEngine(b"", PeerAddress("ipc://peer", b""))
    manager.handle(InstanceReady(1))
    manager.handle(Drain("i0", 60.0))
    assert manager.migrations.drained(1) is not None and manager.migrations.drained(2) is None


async def test_a_cordoned_node_stays_so_when_llumnixd_is_back(ledger: Ledger, world: World) -> None:
    async with managing(ledger, world) as manager:
        manager.start()
        manager.handle(CordonNode("n1"))
        assert world.written[-1].cordoned_nodes == ("n1",)
    async with managing(world.written[-1], world) as manager:
        manager.start()
        manager.handle(AddInstances(1))
        assert world.not_on[-1] == ("n1",)
        manager.node_is_gone("n2")
        assert manager.scheduler.cordoned_nodes() == ("n1",)
        manager.node_is_gone("n1")
        assert manager.scheduler.cordoned_nodes() == ()


async def test_an_api_server_that_says_up_during_the_stop_is_told_to_end_in_the_time_that_is_left(
    ledger: Ledger, world: World
) -> None:
    known = msgspec.structs.replace(ledger, api_servers=(KnownApiServer(0, "api-server-0", 77),))
    told: list[FromManager] = []
    async with managing(known, world) as manager:
        manager.start()
        stop = asyncio.create_task(manager.drain_requests(30.0))
        await asyncio.sleep(0.1)
        link = ControlLink(known.endpoints, 0, 77)
        reading = asyncio.create_task(link.run(told.append))
        await until(lambda: told)
        assert isinstance(told[0], StopServing) and 25.0 < told[0].drain_s < 29.95
        world.api_server_ends.set()
        async with asyncio.timeout(2):
            await stop
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await link.close()
