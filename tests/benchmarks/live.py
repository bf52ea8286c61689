"""What the benchmarks of live migration and failover share: timed streams, an asynchronous admin client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.peer import unwind_on_sigterm
from tests.e2e.running import RunningCluster, running, settings

POLL_S = 0.01
ADMIN_POLL_S = 0.05
"""Asking llumnixd more often would take much of a core from what is measured."""
KV_BYTES = "256M"


def config(directory: Path, num_instances: int, **changes: dict[str, Any]) -> dict[str, Any]:
    """A float32 cluster that moves nothing by itself; `changes` by section."""
    base: dict[str, Any] = {
        # Logical: more instances than this machine has cores must find a place.
        "ray": {"num_cpus": max(num_instances, os.cpu_count() or 1)},
        "instances": {"count": num_instances, "restart_backoff_s": 0.1, "restart_limit": 1_000},
        "scheduler": {"rescheduling": False},
        "engine": {"kv_cache_memory_bytes": KV_BYTES},
    }
    for section, values in changes.items():
        base[section] = base.get(section, {}) | values
    return settings(directory / "state", **base)


def prompt(num_tokens: int, rng: random.Random) -> list[int]:
    """Ordinary tokens of the tiny model that no other prompt begins with."""
    return [rng.randrange(20, 1000) for _ in range(num_tokens)]


def body(prompt: list[int] | str, max_tokens: int, **more: Any) -> dict[str, Any]:
    """A streamed greedy completion that goes on to its last token."""
    base = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    return {**base, "ignore_eos": True, **more}


@dataclass
class Stream:
    """One streamed completion under way, and when (Unix time) each of its events came."""

    body: dict[str, Any]
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    texts: dict[int, str] = field(default_factory=dict)
    """By choice."""
    logprob_tokens: dict[int, list[str]] = field(default_factory=dict)
    at: list[float] = field(default_factory=list)
    error: str | None = None
    task: asyncio.Task[None] | None = None

    @property
    def response_id(self) -> str:
        return f"cmpl-{self.request_id}"

    @property
    def answer(self) -> tuple[Any, ...]:
        """What two runs of the same request must agree in."""
        return self.texts, self.logprob_tokens, self.error

    @property
    def is_over(self) -> bool:
        return self.task is not None and self.task.done()

    async def reached(self, num_events: int) -> bool:
        """Wait for so many events; False if it ended before."""
        while len(self.at) < num_events and not self.is_over:
            await asyncio.sleep(POLL_S)
        return len(self.at) >= num_events

    async def ended(self) -> Stream:
        assert self.task is not None
        await self.task
        return self

    async def leave(self) -> None:
        """Close the connection, as a client does that lost interest."""
        assert self.task is not None
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    def gaps_ms(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Between two events of which the later came after `since` and the earlier before `until`."""
        pairs = zip(self.at, self.at[1:], strict=False)
        return [1e3 * (b - a) for a, b in pairs if b >= since and a <= until]

    async def _run(self, http: httpx.AsyncClient, url: str) -> None:
        headers = {"X-Request-Id": self.request_id}
        try:
            async with http.stream(
                "POST", f"{url}/v1/completions", json=self.body, headers=headers
            ) as response:
                if response.status_code != 200:
                    self.error = (await response.aread()).decode()
                    return
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        self._take(json.loads(line[6:]))
        except httpx.HTTPError as error:
            self.error = f"{type(error).__name__}: {error}"

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = str(event["error"])
            return
        self.at.append(time.time())
        for choice in event["choices"]:
            index = choice["index"]
            self.texts[index] = self.texts.get(index, "") + choice["text"]
            if choice.get("logprobs"):
                self.logprob_tokens.setdefault(index, []).extend(choice["logprobs"]["tokens"])


class Refused(Exception):
    """The admin API answered 4xx."""


class Client:
    """Streams and admin calls against one cluster; use as `async with Client.of(cluster)`."""

    def __init__(self, cluster: RunningCluster, http: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
        self._cluster = cluster
        self._http = http
        self._admin = admin

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, cluster: RunningCluster) -> AsyncIterator[Client]:
        token = (cluster.state_dir / "admin.token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        no_limit = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with (
            httpx.AsyncClient(timeout=300, limits=no_limit) as http,
            httpx.AsyncClient(
                base_url=cluster.admin_url, headers=headers, timeout=30, limits=no_limit
            ) as admin,
        ):
            yield cls(cluster, http, admin)

    def stream(self, request: dict[str, Any]) -> Stream:
        started = Stream(request)
        started.task = asyncio.create_task(started._run(self._http, self._cluster.url))
        return started

    async def answers(self, requests: Iterable[dict[str, Any]], at_once: int = 1_000) -> list[Stream]:
        """The requests' ends, never more than `at_once` under way."""
        room = asyncio.Semaphore(at_once)

        async def one(request: dict[str, Any]) -> Stream:
            async with room:
                return await self.stream(request).ended()

        return list(await asyncio.gather(*(one(request) for request in requests)))

    async def admin(self, method: str, path: str, **options: Any) -> Any:
        """The parsed answer; raises Refused for 4xx."""
        response = await self._admin.request(method, path, **options)
        if response.is_client_error:
            raise Refused(response.text)
        response.raise_for_status()
        return response.json()

    async def instances(self) -> dict[str, dict[str, Any]]:
        return {i["id"]: i for i in (await self.admin("GET", "/v1/instances"))["items"]}

    async def rows(self, stream: Stream) -> list[dict[str, Any]]:
        """The admin API's view of a stream's request, a row for each choice."""
        rows = (await self.admin("GET", "/v1/requests?limit=1000"))["items"]
        return [row for row in rows if row["response_id"] == stream.response_id]

    async def move(self, stream: Stream, to: str | None = None) -> dict[str, Any]:
        """Begin to move a stream's request, wait for the end of it; the migration. Raises Refused."""
        chosen = {} if to is None else {"to": to}
        asked = await self.admin("POST", f"/v1/requests/{stream.response_id}/migrate", json=chosen)

        async def end() -> dict[str, Any] | None:
            with contextlib.suppress(Refused):  # its first news is on the way
                migration: dict[str, Any] = await self.admin("GET", f"/v1/migrations/{asked['id']}")
                return migration if migration["ended_at"] is not None else None
            return None

        ended: dict[str, Any] = await self.until(end, 30, f"migration {asked['id']} ends")
        return ended

    async def move_once_listed(self, stream: Stream) -> tuple[float, dict[str, Any]]:
        """As `move`, tried until the admin API knows where the request is; (when it was asked for, the
        migration). Raises Refused if that does not come to be while the stream runs."""
        while True:
            asked_at = time.time()
            try:
                return asked_at, await self.move(stream)
            except Refused:
                if stream.is_over:
                    raise
            await asyncio.sleep(ADMIN_POLL_S)

    async def until(self, look: Callable[[], Awaitable[Any]], timeout_s: float, what: str) -> Any:
        """The first true result of `look`; AssertionError naming `what` when the time is up."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = await look()
            if found:
                return found
            await asyncio.sleep(ADMIN_POLL_S)
        raise AssertionError(f"not within {timeout_s:g} s: {what}")

    async def until_serving(self, names: Iterable[str], timeout_s: float = 240) -> None:
        wanted = set(names)

        async def all_serve() -> bool:
            instances = await self.instances()
            return all(instances.get(name, {}).get("state") == "running" for name in wanted)

        await self.until(all_serve, timeout_s, f"{sorted(wanted)} serve")


def on_cluster(
    measure: Callable[[Client], Awaitable[None]], num_instances: int, **changes: dict[str, Any]
) -> None:
    """Have `measure` talk to a cluster of its own, of `config`; SIGTERM ends both in good order."""
    unwind_on_sigterm()

    async def run(cluster: RunningCluster) -> None:
        async with Client.of(cluster) as client:
            await measure(client)

    with tempfile.TemporaryDirectory(prefix="llumnix-bench-") as directory:
        options = config(Path(directory), num_instances, **changes)
        with running(options, Path(directory)) as cluster:
            asyncio.run(run(cluster))


def verdict(holds: bool) -> str:
    return "held" if holds else "MISSED"
