"""The admin API over HTTP: one round of answers, commands, and the journal as a stream."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from llumnix.admin import schema
from llumnix.admin.schema import (
    Caller,
    Cluster,
    ErrorBody,
    Event,
    EventPage,
    LogTail,
    MigrationTotals,
    Request,
)
from llumnix_tui.commands import Command, Target
from llumnix_tui.snapshot import Snapshot

TIMEOUT_S: Final = 10.0
# The server sends a comment every 15 s: more silence than this means that it is gone.
STREAM_TIMEOUT_S: Final = 40.0
PAGE_LIMIT: Final = 1000
MIGRATIONS_SHOWN: Final = 500
EVENTS_AT_START: Final = 500
LOG_LINES: Final = 200
# So long a round waits for a log: one on another node may take longer, and is then shown when it has come.
LOG_WAIT_S: Final = 0.1

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")


class AdminError(Exception):
    """The admin API could not be reached, refused, or gave an answer that is none; one sentence."""

    def __init__(self, message: str, code: str = "unreachable") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Interest:
    """What is fetched beyond the cluster, its instances, nodes and migrations, as somebody looks at it."""

    requests: bool = False
    # If given: of the requests only those there, and the tail of its log.
    instance: str | None = None
    # How many migrations there were from whom to whom.
    migration_totals: bool = False


class AdminClient:
    """Calls the admin API; every failure is an AdminError."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # Without the environment's proxies: the admin API is on loopback or in the operator's own network.
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=TIMEOUT_S, trust_env=False)
        # The log that was asked for last: whose, what came of it so far, and the call under way.
        self._log_of: str | None = None
        self._log_lines: tuple[str, ...] = ()
        self._log_call: asyncio.Task[tuple[str, ...]] | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._log_call is not None:
            self._log_call.cancel()
        await self._http.aclose()

    async def snapshot(self, interest: Interest) -> Snapshot:
        """Return one round of answers."""
        cluster, instances, nodes, migrations = await asyncio.gather(
            self._get("/v1/cluster", Cluster),
            self._all("/v1/instances", schema.InstancePage),
            self._all("/v1/nodes", schema.NodePage),
            self._get("/v1/migrations", schema.MigrationPage, limit=MIGRATIONS_SHOWN),
        )
        return Snapshot(
            taken_at=time.time(),
            cluster=cluster,
            instances=instances,
            nodes=nodes,
            migrations=migrations.items,
            migration_totals=await self._migration_totals() if interest.migration_totals else None,
            requests=await self._requests(interest.instance) if interest.requests else None,
            requests_of=interest.instance,
            logs={} if interest.instance is None else {interest.instance: await self._log(interest.instance)},
        )

    async def role(self) -> schema.Role | None:
        """Return what the token may do, or None if the daemon does not tell."""
        try:
            return (await self._get("/v1/whoami", Caller)).role
        except AdminError as error:
            if error.code == "not_found":
                return None
            raise

    async def events_since(self, seq: int) -> tuple[Event, ...]:
        """Return the oldest events after `seq`, in order."""
        return (await self._get("/v1/events", EventPage, since=seq, limit=PAGE_LIMIT)).items

    async def latest_events(self) -> tuple[Event, ...]:
        """Return the newest events, in order."""
        page = await self._get("/v1/events", EventPage, order="desc", limit=EVENTS_AT_START)
        return page.items[::-1]

    async def stream(self, since: int) -> AsyncIterator[Event]:
        """Yield the journal's events after `since` as they are written."""
        timeout = httpx.Timeout(TIMEOUT_S, read=STREAM_TIMEOUT_S)
        try:
            async with self._http.stream(
                "GET", "/v1/events/stream", params={"since": since}, timeout=timeout
            ) as response:
                if response.is_error:
                    await response.aread()
                    raise refusal(response)
                # Each event is one line of JSON after "data: "; number and kind are in it too.
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        yield _parsed(Event, line.removeprefix("data:"))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def send(self, command: Command) -> None:
        """Send a command, once."""
        await self._call(command.method, command.path, json=command.body)

    async def _requests(self, instance_id: str | None) -> tuple[Request, ...]:
        chosen = {} if instance_id is None else {"instance": instance_id}
        return await self._all("/v1/requests", schema.RequestPage, **chosen)

    async def _migration_totals(self) -> MigrationTotals | None:
        """Return the totals; None from a daemon of an older version."""
        try:
            return await self._get("/v1/migration-totals", MigrationTotals)
        except AdminError as error:
            if error.code == "not_found":
                return None
            raise

    async def _log(self, instance_id: str) -> tuple[str, ...]:
        """Return the log as it came last; one call at a time is under way."""
        if self._log_of != instance_id:
            if self._log_call is not None:
                self._log_call.cancel()
            self._log_of, self._log_lines, self._log_call = instance_id, ("…",), None
        if self._log_call is None:
            self._log_call = asyncio.create_task(self._fetch_log(instance_id))
        await asyncio.wait({self._log_call}, timeout=LOG_WAIT_S)
        if self._log_call.done():
            call, self._log_call = self._log_call, None
            self._log_lines = call.result()
        return self._log_lines

    async def _fetch_log(self, instance_id: str) -> tuple[str, ...]:
        try:
            tail = await self._get(f"{Target('instance', instance_id).path}/log", LogTail, lines=LOG_LINES)
        except AdminError as error:
            return (str(error),)
        return tail.lines

    async def _all(self, path: str, page_type: type[schema.Page[Item]], **chosen: str) -> tuple[Item, ...]:
        """Return every part of a list. Each is parsed apart, so that keys are served in between."""
        items: list[Item] = []
        cursor: dict[str, str] = {}
        while True:
            page = await self._get(path, page_type, limit=PAGE_LIMIT, **chosen, **cursor)
            items.extend(page.items)
            if page.next is None:
                return tuple(items)
            cursor = {"cursor": page.next}

    async def _get(self, path: str, model: type[Model], **params: str | int) -> Model:
        return _parsed(model, (await self._call("GET", path, params=params)).content)

    async def _call(
        self,
        method: str,
        path: str,
        params: dict[str, str | int] | None = None,
        json: dict[str, Any] | None = None,
    ) -> httpx.Response:
        try:
            response = await self._http.request(method, path, params=params, json=json)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise refusal(response)
        return response

    def _unreachable(self, error: httpx.HTTPError) -> AdminError:
        return AdminError(f"no answer from {self.url}: {error or type(error).__name__}")


def refusal(response: httpx.Response) -> AdminError:
    """Return what an answer with an error status says."""
    try:
        error = ErrorBody.model_validate_json(response.content).error
    except ValidationError:
        code = {401: "unauthorized", 403: "forbidden"}.get(response.status_code, "http")
        return AdminError(f"HTTP {response.status_code} {response.reason_phrase}", code)
    return AdminError(error.message, error.code)


def _parsed(model: type[Model], text: str | bytes) -> Model:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AdminError(
            f"the daemon's answer is no {model.__name__}: {where}: {first['msg']}", "malformed"
        ) from error
