"""What helps to find a fault: who is asking, logs, and the data of a support bundle."""

from typing import Annotated

from fastapi import APIRouter, Query

from llumnix.admin.answers import documented
from llumnix.admin.queries import LogQuery
from llumnix.admin.routes import NO_QUERY, TOKEN_NEEDED, Around, CallerToken, TargetId, find_instance
from llumnix.admin.schema import Caller, Diagnostics, LogNames, LogTail

support = APIRouter(
    prefix="/v1", tags=["support"], dependencies=[TOKEN_NEEDED], responses=documented(400, 401, 404, 409, 500)
)


@support.get("/whoami", dependencies=[NO_QUERY])
async def whoami(token: CallerToken) -> Caller:
    """Return the name and the role of the caller's token."""
    return Caller(name=token.name, role=token.role)


@support.get("/logs", dependencies=[NO_QUERY])
async def list_logs(around: Around) -> LogNames:
    """Return the names of the logs on the daemon's machine and on the other nodes."""
    return await around.logs.names()


@support.get("/logs/{name}")
async def get_log(around: Around, name: TargetId, query: Annotated[LogQuery, Query()]) -> LogTail:
    """Return the last lines of a log; 409 if it is on a node that is gone or does not answer."""
    return LogTail(lines=await around.logs.tail(name, query.lines, query.node))


@support.get("/instances/{instance_id}/log")
async def get_instance_log(
    around: Around, instance_id: TargetId, query: Annotated[LogQuery, Query()]
) -> LogTail:
    """Return the last lines of an instance's log, of all its incarnations where its latest is or was."""
    find_instance(around.control, instance_id)
    return LogTail(lines=await around.logs.tail(instance_id, query.lines, query.node))


@support.get("/diagnostics", dependencies=[NO_QUERY])
async def get_diagnostics(around: Around) -> Diagnostics:
    """Return the versions of what runs, and the last report of every instance."""
    return around.control.diagnostics()
