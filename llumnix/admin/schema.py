"""Wire models of the admin API: the contract shared by the daemon, the TUI and llumnixctl.

Imports pydantic and the standard library only, so that clients run without vllm, torch or ray.
Answers ignore fields they do not know (an older client reads a newer daemon); inputs refuse them.
All times named `*_at` and `time` are Unix seconds; every model is frozen.
"""

import math
import os
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

ClusterState = Literal["starting", "serving", "degraded", "down", "stopping"]
InstanceState = Literal[
    "pending",
    "starting",
    "running",
    "cordoned",
    "draining",
    "drained",
    "stopping",
    "restarting",
    "failed",
    "dead",
]
NodeState = Literal["ready", "cordoned", "draining", "drained", "dead"]
RequestState = Literal["queued", "running", "migrating"]
MigrationState = Literal["prepare", "copying", "committed", "aborted"]
ApiServerState = Literal["starting", "serving", "restarting", "dead"]
Severity = Literal["info", "warning", "error"]
Role = Literal["viewer", "operator"]
TargetKind = Literal["instance", "node"]


DEFAULT_URL = "http://127.0.0.1:8001"
"""Where llumnixd serves this API by default."""
TOKEN_FILES = ("~/.local/state/llumnix/admin.token", "/var/lib/llumnix/admin.token")
"""Where it keeps its token by default, and where the system service does."""


def default_token_file(url: str) -> Path | None:
    """Return the first of TOKEN_FILES, or the second where only that one is there and can be read.

    None for another machine's URL: this one's token is none of its business.
    """
    if urlsplit(url).hostname not in ("127.0.0.1", "::1", "localhost"):
        return None
    own, service = (Path(path).expanduser() for path in TOKEN_FILES)
    return service if not os.access(own, os.F_OK) and os.access(service, os.R_OK) else own


def _finite_or_none(value: object) -> object:
    """JSON has no infinities: a freeness of minus infinity (draining) travels as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


FiniteOrNone = Annotated[float | None, BeforeValidator(_finite_or_none)]


class Answer(BaseModel):
    """Base of what the API answers."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Input(BaseModel):
    """Base of JSON bodies: exact types, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# --- errors and probes ------------------------------------------------------------------------------------


class ErrorDetail(Answer):
    """What went wrong: a stable code for programs, one sentence for people."""

    code: str
    message: str


class ErrorBody(Answer):
    """The body of every answer with a status of 400 or above."""

    error: ErrorDetail


class Health(Answer):
    """The daemon's loop answers."""

    status: Literal["ok"] = "ok"


class Readiness(Answer):
    """Every wanted instance serves and the OpenAI endpoint answers."""

    ready: Literal[True] = True


class Caller(Answer):
    """Whose token it is."""

    name: str
    role: Role


# --- cluster ----------------------------------------------------------------------------------------------


class Percentiles(Answer):
    """Of what finished lately, in the unit of the field that holds them."""

    p50: float
    p90: float
    p99: float


class Latency(Answer):
    """Time to first token and time per output token of the requests of the last `window_s` seconds."""

    window_s: float
    ttft_ms: Percentiles | None = None
    tpot_ms: Percentiles | None = None


class PolicyNames(Answer):
    """The named policies in force."""

    scheduler: str
    dispatch: str
    rescheduling: bool
    autoscale: bool


class ScalingBounds(Answer):
    """How many instances are wanted, and between which bounds."""

    min: int
    max: int
    wanted: int


class Counts(Answer):
    """What there is now; states without a member may be missing from `instances`."""

    instances: dict[InstanceState, int] = {}
    nodes: int = 0
    api_servers: int = 0
    requests_queued: int = 0
    # Of the queued ones those that API servers hold, as no instance has room, by priority class.
    requests_held: dict[str, int] = {}
    requests_running: int = 0
    requests_migrating: int = 0
    migrations_active: int = 0


class Totals(Answer):
    """Sums over all instances: gauges first, then counters since the daemon's start."""

    kv_blocks_total: int = 0
    kv_blocks_used: int = 0
    tokens_per_s: float = 0.0
    migrations_committed: int = 0
    migrations_aborted: int = 0
    # Of all committed migrations together.
    migrated_bytes: int = 0
    migration_downtime_ms: float = 0.0
    restarts: int = 0


class PriorityClass(Answer):
    """A priority class of the configuration."""

    name: str
    engine_priority: int
    headroom_tokens: int
    target_load_tokens: int = 0
    """If not 0, in place of `headroom_tokens`: all of an instance's KV tokens but this many are headroom."""


class ApiServer(Answer):
    """One OpenAI server process."""

    id: str
    pid: int | None = None
    state: ApiServerState
    requests: int = 0
    restarts: int = 0


class Cluster(Answer):
    """The cluster at a glance."""

    name: str
    version: str
    state: ClusterState
    reason: str = ""
    uptime_s: float
    model: str = ""
    endpoint_url: str | None = None
    policies: PolicyNames
    scaling: ScalingBounds
    counts: Counts = Counts()
    totals: Totals = Totals()
    # In order of importance, the most important first.
    priorities: tuple[PriorityClass, ...] = ()
    api_servers: tuple[ApiServer, ...] = ()
    latency: Latency | None = None


# --- instances and nodes ----------------------------------------------------------------------------------


class PriorityLoad(Answer):
    """What the requests of one priority class hold on an instance."""

    name: str
    running: int
    waiting: int
    kv_blocks: int


class DrainTotals(Answer):
    """The migrations away that ended since the latest drain began, or llumnixd did, if later."""

    since: float
    moved: int
    aborted: int


class Instance(Answer):
    """One engine and its llumlet.

    `pending` waits for a place on a node, `restarting` for its back-off, `failed` gave up after
    restart_limit; `freeness` is null without a report and where it is minus infinity (draining).
    """

    id: str
    incarnation: int = 0
    pid: int | None = None
    node: str | None = None
    # Where its latest process is or was: that one's log is there.
    last_node: str | None = None
    state: InstanceState
    # Why it is in this state, where that is not obvious: a root cause, a back-off, who cordoned it.
    reason: str = ""
    # What it does while it starts, and for how many seconds it has been starting.
    stage: str = ""
    started_s: float | None = None
    uptime_s: float | None = None
    freeness: FiniteOrNone = None
    block_size: int | None = None
    kv_blocks_total: int = 0
    kv_blocks_used: int = 0
    # Algorithm 1's sum of virtual usages, and what of it is headroom; a drain's infinity is left out.
    kv_blocks_virtual: int | None = None
    kv_blocks_headroom: int | None = None
    running: int = 0
    waiting: int = 0
    priorities: tuple[PriorityLoad, ...] = ()
    step_ms: FiniteOrNone = None
    tokens_per_s: float = 0.0
    migrations_in: int = 0
    migrations_out: int = 0
    restarts: int = 0
    # Of its process's latest drain, also when that is over.
    drain: DrainTotals | None = None
    # What a drain still waits for; `safe_to_remove` is set once it waits for nothing and nothing can arrive.
    blockers: tuple[str, ...] = ()
    safe_to_remove: bool = False


class LogTail(Answer):
    """The last lines of a log, the oldest first."""

    lines: tuple[str, ...]


class NodeLogs(Answer):
    """The logs on another node than the daemon's; `error` says why they cannot be listed."""

    node: str
    names: tuple[str, ...] = ()
    error: str = ""


class LogNames(Answer):
    """The logs on the daemon's machine (its node and names), and those on the other nodes."""

    node: str | None = None
    names: tuple[str, ...]
    others: tuple[NodeLogs, ...] = ()


class Diagnostics(Answer):
    """For a support bundle: versions of what runs, and what each instance last said of itself."""

    versions: dict[str, str]
    reports: dict[str, JsonValue]


class Node(Answer):
    """One machine of the Ray cluster; `safe_to_remove` once it is cordoned and each instance there is."""

    id: str
    address: str
    state: NodeState
    reason: str = ""
    # The head carries the daemon and Ray's control store: the cluster does not outlive it.
    head: bool = False
    cpus: float = 0.0
    gpus: float = 0.0
    instances: tuple[str, ...] = ()
    blockers: tuple[str, ...] = ()
    safe_to_remove: bool = False


# --- requests and migrations ------------------------------------------------------------------------------


class Request(Answer):
    """One request, or one of the n children of one; children share their `response_id`."""

    id: str
    response_id: str | None = None
    # None while it waits in an API server for room on any instance.
    instance: str | None = None
    api_server: str | None = None
    priority: str
    state: RequestState
    # Constant over the request's life: lists are sorted by it.
    arrived_at: float
    age_s: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    kv_blocks: int = 0
    migrations: int = 0
    # Why it is held or was last moved, and how often it was preempted.
    reason: str = ""


class Migration(Answer):
    """One move of a request between two instances; `why` says why it was aborted."""

    id: str
    request: str
    source: str
    target: str
    reason: str = ""
    state: MigrationState
    why: str = ""
    started_at: float
    ended_at: float | None = None
    stages: int = 0
    # What it has to move, as far as is known now; sent and skipped blocks grow towards it.
    blocks_total: int | None = None
    blocks_sent: int = 0
    blocks_skipped: int = 0
    bytes: int = 0
    copy_ms: float = 0.0
    downtime_ms: float | None = None


class MigrationPair(Answer):
    """How many migrations from one instance to another have ended."""

    source: str
    target: str
    committed: int
    aborted: int


class MigrationTotals(Answer):
    """All migrations that ended since the daemon's start, by source and target.

    Of pairs that are very many those that had none for the longest time are in the sums `others_*` only.
    """

    since: float
    pairs: tuple[MigrationPair, ...] = ()
    others_committed: int = 0
    others_aborted: int = 0


class Event(Answer):
    """One entry of the journal. `kind` is a dotted lower-case name such as `instance.dead`."""

    seq: int
    time: float
    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)*$")]
    severity: Severity = "info"
    # The token's name of whoever did it; "llumnixd" for what the cluster did by itself.
    actor: str = "llumnixd"
    # What it happened to, such as "instance/3", "request/cmpl-1", "cluster".
    target: str = ""
    message: str = ""
    data: dict[str, JsonValue] = {}


# --- lists ------------------------------------------------------------------------------------------------

Item = TypeVar("Item")


class Page(Answer, Generic[Item]):
    """A part of a list; `next` is the `cursor` of the following part, or null at the end."""

    items: tuple[Item, ...]
    next: str | None = None


class InstancePage(Page[Instance]):
    """Instances by id."""


class NodePage(Page[Node]):
    """Nodes by id."""


class RequestPage(Page[Request]):
    """Requests, the oldest first."""


class MigrationPage(Page[Migration]):
    """Migrations, the newest first."""


class EventPage(Page[Event]):
    """Events in the order that was asked for."""


# --- inputs -----------------------------------------------------------------------------------------------

Name = Annotated[str, Field(min_length=1, max_length=512)]


class AddInstances(Input):
    """How many instances to add."""

    count: Annotated[int, Field(ge=1, le=1000)]


class DrainOptions(Input):
    """How long a drain may take (null: without limit), and what then happens to what is left."""

    timeout_s: Annotated[float | None, Field(gt=0, le=7 * 86400)] = None
    # leave: the drain gives up, and the instance stays cordoned. abort: their clients get an error.
    on_timeout: Literal["leave", "abort"] = "leave"


class ScaleOptions(Input):
    """How many instances there are to be, within the scaling bounds."""

    count: Annotated[int, Field(ge=1, le=1000)]


class TerminationOptions(Input):
    """When the machine is taken away, in seconds from now."""

    deadline_s: Annotated[float, Field(ge=0, le=7 * 86400)]


class RequestPatch(Input):
    """The name of the request's new priority class."""

    priority: Name


class MigrateOptions(Input):
    """The instance to move to; null lets the scheduler choose."""

    to: Name | None = None


# --- what a command answers -------------------------------------------------------------------------------


class Accepted(Answer):
    """The command was taken; `id` names what it acts on (for a migration: the migration)."""

    id: str


class MigrationsBegun(Accepted):
    """What has begun; `id` is the first migration. The n children of a request leave an instance one by one.

    `migrations`: the first one from each instance. `following`: requests that leave after these, each as soon
    as it can; /v1/migrations shows them from then on. `refused`: requests that stay, and why.
    """

    migrations: tuple[str, ...]
    following: tuple[str, ...] = ()
    refused: dict[str, str] = {}


class InstancesAdded(Answer):
    """The ids of the instances that are being started."""

    ids: tuple[str, ...]
