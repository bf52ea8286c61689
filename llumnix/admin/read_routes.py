"""The reading half of the admin API: answers come from memory or the journal, never from an engine."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from llumnix.admin.answers import documented, error_answer
from llumnix.admin.paging import Key, decode_cursor, encode_cursor, natural, take_page
from llumnix.admin.queries import MAX_SEQ, EventQuery, PageQuery, RequestQuery, StreamQuery
from llumnix.admin.routes import (
    NO_QUERY,
    TOKEN_NEEDED,
    Around,
    TargetId,
    find_instance,
    find_node,
    find_request,
    only,
)
from llumnix.admin.schema import (
    Cluster,
    EventPage,
    Health,
    Instance,
    InstancePage,
    Migration,
    MigrationPage,
    MigrationTotals,
    Node,
    NodePage,
    Readiness,
    Request,
    RequestPage,
)
from llumnix.errors import ConfigError

probes = APIRouter(tags=["probes"])
single = APIRouter(
    prefix="/v1",
    tags=["read"],
    dependencies=[TOKEN_NEEDED, NO_QUERY],
    responses=documented(400, 401, 404, 500),
)
lists = APIRouter(
    prefix="/v1", tags=["read"], dependencies=[TOKEN_NEEDED], responses=documented(400, 401, 500, 503)
)
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@probes.get("/healthz", responses=documented(500))
async def healthz() -> Health:
    """Tell that the daemon's loop answers. Open: probes carry no secret."""
    return Health()


@probes.get("/readyz", responses=documented(500, 503), response_model=Readiness)
async def readyz(around: Around) -> Readiness | Response:
    """Tell whether every wanted instance and the OpenAI endpoint serve. Open: probes carry no secret."""
    ready, why = around.control.ready()
    return Readiness() if ready else error_answer(503, "not_ready", why)


@probes.get(
    "/metrics",
    dependencies=[TOKEN_NEEDED],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented(401, 500)},
)
async def metrics(around: Around) -> Response:
    """Return the cluster's metrics in Prometheus' text form."""
    return Response(generate_latest(around.registry), media_type=CONTENT_TYPE_LATEST)


@single.get("/cluster")
async def get_cluster(around: Around) -> Cluster:
    """Return the cluster at a glance."""
    return around.control.cluster()


@single.get("/config")
async def get_config(around: Around) -> dict[str, Any]:
    """Return the effective configuration, secrets masked."""
    return around.control.config()


@lists.get("/instances")
async def list_instances(around: Around, query: Annotated[PageQuery, Query()]) -> InstancePage:
    """Return the instances by id."""
    items, following = take_page(
        sorted(around.control.instances(), key=_by_id), _by_id, query.limit, query.cursor
    )
    return InstancePage(items=items, next=following)


@single.get("/instances/{instance_id}")
async def get_instance(around: Around, instance_id: TargetId) -> Instance:
    """Return one instance."""
    return find_instance(around.control, instance_id)


@lists.get("/nodes")
async def list_nodes(around: Around, query: Annotated[PageQuery, Query()]) -> NodePage:
    """Return the nodes by id."""
    items, following = take_page(
        sorted(around.control.nodes(), key=_by_id), _by_id, query.limit, query.cursor
    )
    return NodePage(items=items, next=following)


@single.get("/nodes/{node_id}")
async def get_node(around: Around, node_id: TargetId) -> Node:
    """Return one node."""
    return find_node(around.control, node_id)


@lists.get("/requests")
async def list_requests(around: Around, query: Annotated[RequestQuery, Query()]) -> RequestPage:
    """Return the unfinished requests, the oldest first."""
    chosen = [
        request
        for request in around.requests.ordered(query.cursor)
        if query.instance in (None, request.instance)
        and query.priority in (None, request.priority)
        and query.response_id in (None, request.response_id)
    ]
    items, following = take_page(chosen, around.requests.key, query.limit, query.cursor)
    return RequestPage(items=items, next=following)


@single.get("/requests/{request_id}")
async def get_request(around: Around, request_id: TargetId) -> Request:
    """Return one request; a response id with several children gives the first of them."""
    return find_request(around.control, request_id)


@lists.get("/migrations")
async def list_migrations(around: Around, query: Annotated[PageQuery, Query()]) -> MigrationPage:
    """Return the migrations under way and the latest that ended, the newest first."""
    items, following = take_page(
        sorted(around.control.migrations(), key=_newest_first), _newest_first, query.limit, query.cursor
    )
    return MigrationPage(items=items, next=following)


@single.get("/migration-totals")
async def get_migration_totals(around: Around) -> MigrationTotals:
    """Return how many migrations ended since the daemon's start, by source and target."""
    return around.control.migration_totals()


@single.get("/migrations/{migration_id}")
async def get_migration(around: Around, migration_id: TargetId) -> Migration:
    """Return one migration."""
    found = (item for item in around.control.migrations() if item.id == migration_id)
    return only(found, "migration", migration_id)


@lists.get("/events")
async def list_events(around: Around, query: Annotated[EventQuery, Query()]) -> EventPage:
    """Return the journal's events after `since`, the oldest or the newest first."""
    mark = None if query.cursor is None else _seq_in(query.cursor)
    # One more than asked for tells whether there is a next part. On a thread: disks can be slow.
    if query.order == "asc":
        start = query.since if mark is None else max(mark, query.since)
        events = await asyncio.to_thread(around.journal.since, start, query.limit + 1)
    else:
        before = MAX_SEQ if mark is None else mark
        events = await asyncio.to_thread(around.journal.latest, query.since, before, query.limit + 1)
    page = tuple(events[: query.limit])
    return EventPage(items=page, next=encode_cursor([page[-1].seq]) if len(events) > query.limit else None)


@lists.get(
    "/events/stream",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **documented(400, 401, 500),
    },
)
async def stream_events(
    around: Around,
    query: Annotated[StreamQuery, Query()],
    last_event_id: Annotated[int | None, Header(ge=0, le=MAX_SEQ)] = None,
) -> StreamingResponse:
    """Send the journal's events as they are written: `id` is the sequence number, `event` the kind."""
    # A browser that reconnects repeats its first URL and adds the header: the header knows better.
    since = query.since if last_event_id is None else last_event_id
    stream: AsyncIterator[str] = around.feed.stream(since)
    return StreamingResponse(stream, media_type="text/event-stream", headers=STREAM_HEADERS)


def _by_id(item: Instance | Node) -> Key:
    return natural(item.id)


def _newest_first(item: Migration) -> Key:
    return [-item.started_at, item.id]


def _seq_in(cursor: str) -> int:
    key = decode_cursor(cursor)
    if len(key) != 1 or not isinstance(key[0], int) or not 0 <= key[0] <= MAX_SEQ:
        raise ConfigError("cursor: not a cursor of the events, expected the `next` of an earlier answer")
    return key[0]
