"""Against the real admin server: polling, stream, commands, refusals; a server that goes and comes back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot

from llumnix.admin.journal import Journal
from llumnix.admin.server import AdminServer
from llumnix.admin.tokens import Token, TokenBook
from llumnix_tui import source as source_module
from llumnix_tui.client import AdminClient, AdminError, Interest
from llumnix_tui.commands import Target, cordon, migrate
from llumnix_tui.source import LiveSource
from llumnix_tui.store import Store
from tests.admin.fake_cluster import FakeCluster, as_control, make_request
from tests.tui.conftest import app_of, notices, running, settled
from tests.tui.shown import shown

OPERATOR = Token("ops", "operator", "operator-secret")
VIEWER = Token("dash", "viewer", "viewer-secret")
DEADLINE_S = 30.0


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "POLL_S", 0.05)
    monkeypatch.setattr(source_module, "RETRY_S", 0.05)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


@asynccontextmanager
async def serving(cluster: FakeCluster, journal: Journal, port: int = 0) -> AsyncIterator[AdminServer]:
    server = AdminServer(
        as_control(cluster),
        journal,
        TokenBook([OPERATOR, VIEWER]),
        Path("no-logs"),
        port=port,
        keep_alive_s=0.2,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def connected(url: str, token: Token = OPERATOR) -> AsyncIterator[LiveSource]:
    source = LiveSource(AdminClient(url, token.secret))
    try:
        yield source
    finally:
        await source.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def until_shown(pilot: Pilot[None], text: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while text not in shown(pilot.app):
            await asyncio.sleep(0.02)
            await settled(pilot)


async def test_what_the_server_says_is_shown_and_commands_reach_it(
    cluster: FakeCluster, journal: Journal
) -> None:
    async with (
        serving(cluster, journal) as server,
        connected(server.url) as source,
        running(source, frozen=False) as pilot,
    ):
        await until_shown(pilot, "● live")
        await until_shown(pilot, "● running")
        await pilot.press("j", "c", "right", "enter")
        await until_shown(pilot, "◐ cordoned")
        assert cluster.calls == [("cordon", "instance", "i0", "ops")]
        assert notices(pilot) == ["Done: cordon instance i0"]
        await pilot.press("4")
        await until_shown(pilot, "operator.cordon")


async def test_a_log_that_is_long_in_coming_holds_up_nothing_else(
    cluster: FakeCluster, journal: Journal
) -> None:
    cluster.logs_of_other_nodes["node-b"] = {"i1": ("served from afar",)}
    cluster.log_gate.clear()
    async with (
        serving(cluster, journal) as server,
        connected(server.url) as source,
        running(source, frozen=False) as pilot,
    ):
        await until_shown(pilot, "● running")
        await pilot.press("G", "enter", "tab", "tab")
        await until_shown(pilot, "[log]")
        cluster.update("i1", freeness=77.7)
        await until_shown(pilot, "77.7")
        assert "served from afar" not in shown(pilot.app)
        cluster.log_gate.set()
        await until_shown(pilot, "served from afar")


async def test_a_409_shows_the_servers_reason(cluster: FakeCluster, journal: Journal) -> None:
    cluster.add(make_request("cmpl-7"))
    async with (
        serving(cluster, journal) as server,
        connected(server.url) as source,
        running(source, frozen=False) as pilot,
    ):
        await pilot.press("2")
        await until_shown(pilot, "cmpl-7")
        await pilot.press("m", "right", "enter")
        await until(lambda: bool(notices(pilot)))
        assert "live migration is not built into this release" in notices(pilot)[0]
        assert cluster.calls == [("migrate", "cmpl-7", None, "ops")]


async def test_a_viewer_is_refused_by_the_server_too(cluster: FakeCluster, journal: Journal) -> None:
    async with serving(cluster, journal) as server, connected(server.url, VIEWER) as source:
        with pytest.raises(AdminError, match="has role viewer") as caught:
            await source.send(cordon(Target("instance", "i0")))
        assert caught.value.code == "forbidden"
        assert cluster.calls == []


async def test_a_viewers_token_hides_all_actions(cluster: FakeCluster, journal: Journal) -> None:
    async with (
        serving(cluster, journal) as server,
        connected(server.url, VIEWER) as source,
        running(source, frozen=False) as pilot,
    ):
        await until_shown(pilot, "read-only")
        assert "cordon" not in shown(pilot.app)
        await pilot.press("c", "right", "enter")
        assert cluster.calls == []


async def test_a_token_that_is_unknown_is_not_called_a_lost_connection(
    cluster: FakeCluster, journal: Journal
) -> None:
    stranger = Token("nobody", "viewer", "unknown-secret")
    async with (
        serving(cluster, journal) as server,
        connected(server.url, stranger) as source,
        running(source, (120, 40), frozen=False) as pilot,
    ):
        await until_shown(pilot, "✖ not let in, retry")
        header = shown(pilot.app).splitlines()[0]
        assert "a bearer token is needed" in header
        assert "disconnected" not in header


async def test_stale_data_stay_with_their_age_and_the_server_comes_back(
    cluster: FakeCluster, journal: Journal
) -> None:
    async with serving(cluster, journal) as server:
        port, url = server.port, server.url
        async with connected(url) as source, running(source, frozen=False) as pilot:
            await until_shown(pilot, "● running")
            await server.stop()
            await until_shown(pilot, "✖ disconnected, retry")
            text = shown(pilot.app)
            assert "i0" in text
            assert "● running" in text
            assert "old" in text.splitlines()[0]
            assert pilot.app.screen.has_class("-stale")
            first = app_of(pilot).store.connection.retries
            await until(lambda: app_of(pilot).store.connection.retries > first)
            async with serving(cluster, journal, port):
                await until_shown(pilot, "● live")
                assert not pilot.app.screen.has_class("-stale")
                journal.append("instance.died", "after the restart", target="instance/i1")
                await pilot.press("4")
                await until_shown(pilot, "after the restart")


async def test_events_come_by_stream_and_by_polling_where_there_is_none(
    cluster: FakeCluster, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append("test.before", "one")
    async with serving(cluster, journal) as server, connected(server.url) as source:
        store = Store()
        task = asyncio.create_task(source.run(store))
        await until(lambda: store.last_seq is not None and server.feed.num_clients == 1)
        event = journal.append("test.live", "two")
        await until(lambda: store.last_seq == event.seq)
        task.cancel()
    async with serving(cluster, journal) as server, connected(server.url) as source:

        async def no_stream(since: int) -> AsyncIterator[object]:
            raise AdminError("no stream")
            yield

        monkeypatch.setattr(source._client, "stream", no_stream)
        store = Store()
        task = asyncio.create_task(source.run(store))
        await until(lambda: store.last_seq is not None)
        event = journal.append("test.polled", "three")
        await until(lambda: store.last_seq == event.seq)
        assert server.feed.num_clients == 0
        task.cancel()


async def test_lists_are_fetched_to_their_end(cluster: FakeCluster, journal: Journal) -> None:
    cluster.add(*(make_request(f"r{number:04}") for number in range(2300)))
    async with serving(cluster, journal) as server:
        client = AdminClient(server.url, OPERATOR.secret)
        snapshot = await client.snapshot(Interest(requests=True))
        assert snapshot.requests is not None
        assert len({request.id for request in snapshot.requests}) == 2300
        assert (await client.snapshot(Interest())).requests is None
        await client.close()


async def test_of_an_instance_only_its_own_requests_are_fetched(
    cluster: FakeCluster, journal: Journal
) -> None:
    cluster.add(make_request("here", instance="i0"), make_request("there", instance="i1"))
    async with serving(cluster, journal) as server:
        client = AdminClient(server.url, OPERATOR.secret)
        snapshot = await client.snapshot(Interest(requests=True, instance="i0"))
        assert [request.id for request in snapshot.requests_on("i0") or ()] == ["here"]
        assert snapshot.requests_on("i1") is None
        assert snapshot.migration_totals is None
        snapshot = await client.snapshot(Interest(migration_totals=True))
        assert snapshot.migration_totals == cluster.migration_totals()
        await client.close()


async def test_errors_are_one_sentence() -> None:
    client = AdminClient("http://127.0.0.1:9", None)
    with pytest.raises(AdminError, match=r"no answer from http://127\.0\.0\.1:9: "):
        await client.send(migrate("r", None))
    await client.close()
