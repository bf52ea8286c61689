"""The server's life inside the daemon's loop."""

import asyncio
import signal
import socket
from pathlib import Path

import httpx
import pytest

from llumnix.admin.journal import Journal
from llumnix.admin.server import AdminServer
from llumnix.admin.tokens import TokenBook
from llumnix.errors import ConfigError, StartupError
from tests.admin.conftest import OPERATOR
from tests.admin.fake_cluster import FakeCluster, as_control


def make_server(journal: Journal, tokens: TokenBook, host: str = "127.0.0.1", port: int = 0) -> AdminServer:
    return AdminServer(as_control(FakeCluster()), journal, tokens, Path("no-logs"), host, port)


async def test_signal_handlers_are_left_alone(journal: Journal) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    server = make_server(journal, TokenBook([OPERATOR]))
    await server.start()
    assert {number: signal.getsignal(number) for number in before} == before
    await server.stop()
    assert {number: signal.getsignal(number) for number in before} == before


async def test_the_port_is_free_after_a_stop_and_can_be_had_again(journal: Journal) -> None:
    first = make_server(journal, TokenBook([OPERATOR]))
    await first.start()
    await first.stop()
    second = make_server(journal, TokenBook([OPERATOR]), port=first.port)
    await second.start()
    async with httpx.AsyncClient(base_url=second.url, trust_env=False) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
    await second.stop()


async def test_a_port_in_use_is_one_clear_sentence(journal: Journal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=rf"admin\.port: {port} is in use"):
            await make_server(journal, TokenBook([OPERATOR]), port=port).start()


async def test_an_address_of_another_machine_is_refused(journal: Journal) -> None:
    with pytest.raises(ConfigError, match=r"admin\.host"):
        await make_server(journal, TokenBook([OPERATOR]), host="192.0.2.1").start()


async def test_without_a_token_only_loopback_is_served(journal: Journal) -> None:
    with pytest.raises(ConfigError, match="not loopback"):
        await make_server(journal, TokenBook([]), host="0.0.0.0").start()
    server = make_server(journal, TokenBook([]))
    await server.start()
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        assert (await client.get("/v1/cluster")).status_code == 401
    await server.stop()


async def test_a_stop_is_harmless_twice_and_before_a_start(journal: Journal) -> None:
    server = make_server(journal, TokenBook([OPERATOR]))
    await server.stop()
    await server.start()
    await server.stop()
    await server.stop()


async def test_a_stop_lets_a_command_under_way_finish(journal: Journal) -> None:
    cluster = FakeCluster()
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow_abort(request_id: str, actor: str) -> None:
        entered.set()
        await go_on.wait()

    cluster.abort_request = slow_abort  # type: ignore[method-assign]
    server = AdminServer(as_control(cluster), journal, TokenBook([OPERATOR]), Path("no-logs"), port=0)
    await server.start()
    headers = {"Authorization": f"Bearer {OPERATOR.secret}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False) as client:
        aborting = asyncio.create_task(client.delete("/v1/requests/r0"))
        await entered.wait()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        go_on.set()
        assert (await aborting).status_code == 202
        await stopping
    assert [event.data["outcome"] for event in journal.since(0, 10)] == ["done"]
