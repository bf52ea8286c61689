"""Query strings of the admin API's lists; unknown parameters are refused."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from llumnix.admin.logs import MAX_LINES
from llumnix.admin.schema import Name

MAX_SEQ: Final = 2**63 - 1  # SQLite's largest row id


class Query(BaseModel):
    """Base of query strings, whose values arrive as text; no unknown parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PageQuery(Query):
    """Which part of a list."""

    limit: Annotated[int, Field(ge=1, le=1000, description="Items at most.")] = 100
    cursor: Annotated[Name | None, Field(description="`next` of the part before.")] = None


class RequestQuery(PageQuery):
    """Which requests; filters are exact matches."""

    instance: Name | None = None
    priority: Name | None = None
    response_id: Name | None = None


class EventQuery(PageQuery):
    """Which events: those with a larger sequence number than `since`."""

    since: Annotated[int, Field(ge=0, le=MAX_SEQ)] = 0
    order: Annotated[Literal["asc", "desc"], Field(description="asc: the oldest first.")] = "asc"


class StreamQuery(Query):
    """Where a live stream starts; by default with the next event. Last-Event-ID wins."""

    since: Annotated[int | None, Field(ge=0, le=MAX_SEQ)] = None


class LogQuery(Query):
    """How much of a log's end, and of which if several nodes have one."""

    lines: Annotated[int, Field(ge=1, le=MAX_LINES)] = 200
    node: Annotated[Name | None, Field(description="Where the log is, if not where it would be now.")] = None
