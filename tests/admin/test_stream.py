"""Server-sent events: live, resumable, complete, and gone when either side goes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from llumnix.admin.journal import Journal
from llumnix.admin.server import AdminServer
from tests.admin.conftest import VIEWER, client_of


@dataclass(frozen=True)
class Message:
    seq: int
    kind: str
    data: dict[str, object]


class Stream:
    """Reads server-sent events from a response."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.comments: list[str] = []

    async def next(self) -> Message:
        fields: dict[str, str] = {}
        async for line in self._lines:
            if line.startswith(":"):
                self.comments.append(line)
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "id" in fields:
                return Message(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            else:
                fields = {}
        raise EOFError

    async def take(self, count: int) -> list[Message]:
        return [await self.next() for _ in range(count)]


@asynccontextmanager
async def streaming(
    client: httpx.AsyncClient, since: int | None = None, last_event_id: int | None = None
) -> AsyncIterator[Stream]:
    params = {} if since is None else {"since": since}
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    async with client.stream("GET", "/v1/events/stream", params=params, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Stream(response)


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_new_events_arrive_live_with_number_kind_and_json(
    viewer: httpx.AsyncClient, journal: Journal, server: AdminServer
) -> None:
    journal.append("test.before")
    async with streaming(viewer) as stream:
        await until(lambda: server.feed.num_clients == 1)
        event = journal.append("instance.dead", "line\nbreak", target="instance/i0", data={"code": 9})
        message = await stream.next()
    assert (message.seq, message.kind) == (event.seq, "instance.dead")
    assert message.data == event.model_dump(mode="json")


async def test_appends_of_other_threads_arrive(
    viewer: httpx.AsyncClient, journal: Journal, server: AdminServer
) -> None:
    async with streaming(viewer) as stream:
        await until(lambda: server.feed.num_clients == 1)
        event = await asyncio.to_thread(journal.append, "test.thread")
        assert (await stream.next()).seq == event.seq


async def test_a_stream_resumes_after_the_last_event_that_was_seen(
    viewer: httpx.AsyncClient, journal: Journal
) -> None:
    seqs = [journal.append("test.event").seq for _ in range(1000)]
    async with streaming(viewer, last_event_id=seqs[9]) as stream:
        assert [message.seq for message in await stream.take(990)] == seqs[10:]
    async with streaming(viewer, since=seqs[996]) as stream:
        assert [message.seq for message in await stream.take(3)] == seqs[997:]
    # A browser repeats the first URL when it reconnects; its header is the newer knowledge.
    async with streaming(viewer, since=0, last_event_id=seqs[998]) as stream:
        assert (await stream.next()).seq == seqs[999]


async def test_a_number_that_was_never_given_out_starts_over(
    viewer: httpx.AsyncClient, journal: Journal
) -> None:
    first = journal.append("test.event").seq
    async with streaming(viewer, last_event_id=first + 1000) as stream:
        assert (await stream.next()).seq == first


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9223372036854775808"])
async def test_a_bad_last_event_id_is_refused(viewer: httpx.AsyncClient, value: str) -> None:
    response = await viewer.get("/v1/events/stream", headers={"Last-Event-ID": value})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid")


async def test_a_client_that_reads_slowly_misses_nothing(
    viewer: httpx.AsyncClient, journal: Journal, server: AdminServer
) -> None:
    async with streaming(viewer) as stream:
        await until(lambda: server.feed.num_clients == 1)
        blob = "x" * 10_000  # 20 MB in all: more than the sockets between us can hold
        seqs = [journal.append("test.event", data={"blob": blob}).seq for _ in range(2000)]
        assert (await viewer.get("/healthz")).status_code == 200
        assert [message.seq for message in await stream.take(len(seqs))] == seqs


async def test_a_silent_stream_is_kept_alive(
    viewer: httpx.AsyncClient, journal: Journal, server: AdminServer
) -> None:
    async with streaming(viewer) as stream:
        reading = asyncio.create_task(stream.next())
        await until(lambda: stream.comments)
        journal.append("test.event")
        assert (await reading).kind == "test.event"
    assert stream.comments[0] == ": keep-alive"


async def test_a_client_that_leaves_is_forgotten(
    viewer: httpx.AsyncClient, journal: Journal, server: AdminServer
) -> None:
    async with streaming(viewer):
        await until(lambda: server.feed.num_clients == 1)
    await until(lambda: server.feed.num_clients == 0)
    journal.append("test.event")


async def test_a_stop_ends_open_streams(server: AdminServer, journal: Journal) -> None:
    async with client_of(server, VIEWER) as client, streaming(client, since=0) as stream:
        journal.append("test.event")
        await stream.next()
        reading = asyncio.create_task(stream.next())
        await asyncio.wait_for(server.stop(), 20)
        with pytest.raises(EOFError):
            await asyncio.wait_for(reading, 20)
    await until(lambda: server.feed.num_clients == 0)


async def test_a_stop_waits_for_no_client_that_does_not_read(server: AdminServer, journal: Journal) -> None:
    for _ in range(1000):
        journal.append("test.event", data={"blob": "x" * 10_000})
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    path = "/v1/events/stream?since=0"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {VIEWER.secret}\r\n\r\n".encode())
    await reader.readline()
    await asyncio.wait_for(server.stop(), 20)
    await until(lambda: server.feed.num_clients == 0)
    writer.close()
