"""What every route of the admin API shares: its surroundings, parameters, and look-ups."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, HTTPException, Path, Request, Security
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry
from pydantic import AfterValidator

from llumnix.admin.cluster_logs import ClusterLogs
from llumnix.admin.control import ClusterControl
from llumnix.admin.gate import TOKEN_KEY, slashes_back
from llumnix.admin.journal import Journal
from llumnix.admin.paging import Listing
from llumnix.admin.schema import Instance, Node
from llumnix.admin.schema import Request as RequestModel
from llumnix.admin.sse import EventFeed
from llumnix.admin.tokens import Token
from llumnix.errors import UnknownTargetError


@dataclass(frozen=True)
class Surroundings:
    """What the routes work with."""

    control: ClusterControl
    journal: Journal
    feed: EventFeed
    registry: CollectorRegistry
    logs: ClusterLogs
    # The oldest first.
    requests: Listing[RequestModel]


def surroundings_of(request: Request) -> Surroundings:
    """Return the app's surroundings."""
    surroundings: Surroundings = request.app.state.surroundings
    return surroundings


def token_of(request: Request) -> Token:
    """Return the caller's token, which the gate has checked."""
    token: Token = request.scope[TOKEN_KEY]
    return token


def actor_of(request: Request) -> str:
    """Return the name of the caller's token."""
    return token_of(request).name


def no_query(request: Request) -> None:
    """Refuse query parameters where none are known."""
    if request.query_params:
        names = ", ".join(sorted(request.query_params.keys()))
        raise HTTPException(400, f"unknown query parameter: {names}; this route takes none")


async def no_body(request: Request) -> None:
    """Refuse a body where no field is known; an empty object has none."""
    if (await request.body()).strip() not in (b"", b"{}"):
        raise HTTPException(400, "this route takes no body")


Around = Annotated[Surroundings, Depends(surroundings_of)]
Actor = Annotated[str, Depends(actor_of)]
CallerToken = Annotated[Token, Depends(token_of)]
TargetId = Annotated[str, Path(min_length=1, max_length=512), AfterValidator(slashes_back)]
NO_QUERY = Depends(no_query)
NO_BODY = Depends(no_body)
# The gate checks tokens; this only tells OpenAPI that one is needed.
TOKEN_NEEDED = Security(HTTPBearer(auto_error=False, description="The secret in <state_dir>/admin.token."))

Found = TypeVar("Found")


def only(found: Iterable[Found], what: str, wanted: str) -> Found:
    """Return the first of what was found, or raise UnknownTargetError."""
    for item in found:
        return item
    raise UnknownTargetError(f"there is no {what} {wanted!r}")


def find_instance(control: ClusterControl, instance_id: str) -> Instance:
    """Return the instance with this id."""
    return only((i for i in control.instances() if i.id == instance_id), "instance", instance_id)


def find_node(control: ClusterControl, node_id: str) -> Node:
    """Return the node with this id."""
    return only((n for n in control.nodes() if n.id == node_id), "node", node_id)


def find_request(control: ClusterControl, request_id: str) -> RequestModel:
    """Return the request with this internal id, else the first child with this response id."""
    requests = control.requests()
    matches = [r for r in requests if r.id == request_id] or [
        r for r in requests if r.response_id == request_id
    ]
    return only(sorted(matches, key=lambda r: r.id), "unfinished request", request_id)
