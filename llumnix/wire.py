"""Messages on our ZMQ sockets, msgpack with fixed types, and the addresses of those sockets.

Instances connect, API servers and the manager bind; per-request and per-step traffic is on the first two:

- input:    API server ROUTER -> instance DEALER, vLLM's own frames (type, request), or HELLO; JOIN back;
- output:   instance PUSH -> API server PULL, frames (tag, origin, payload...), below;
- commands: manager ROUTER <-> DEALER of instance and API server, one `FromManager` or `ToManager` a frame;
- news:     instance PUSH -> manager PULL, one `ToManager` a frame.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from llumnix.core.events import Beat, DispatchEntry, HeldRequests
from llumnix.core.handover.messages import Adopted, Moved
from llumnix.core.load import InstanceReport
from llumnix.core.victims import MoveGoal

HELLO = b"\x10"
"""From an API server to an instance, in front of its first request: count my requests from zero."""
JOIN = b"\x11"
"""From an instance to an API server on every new connection: this way is open."""

RESUME = b"\x12"
"""From an API server to an instance: (output tokens so far, request), to go on with what ran elsewhere."""

# From an instance to an API server every message is (tag, origin, payload).
TAG_OUTPUTS = b"O"
"""A step's or a utility call's EngineCoreOutputs of this API server."""
TAG_REPORT = b"R"
"""An InstanceReport."""
TAG_NOTICE = b"N"
"""A NoticeFrom."""
TAG_LAST_WORDS = b"D"
"""The engine loop failed; the payload is the root cause, utf-8."""

_ORIGIN = struct.Struct("<IQ")


def origin(uid: int, number: int) -> bytes:
    """Who sends a message, and its number among those to this API server, from 0."""
    return _ORIGIN.pack(uid, number)


def origin_of(frame: bytes | memoryview) -> tuple[int, int]:
    """(uid, number) of a message."""
    uid, number = _ORIGIN.unpack(frame)
    return uid, number


class NewPriority(msgspec.Struct, frozen=True):
    """An operator changed a request's engine priority where it runs: its later attempts have it too."""

    request_id: str
    priority: int


class NoticeFrom(msgspec.Struct, frozen=True):
    """One of three notices about a request to its API server, in order with its outputs."""

    uid: int
    moved: Moved | None = None
    adopted: Adopted | None = None
    priority: NewPriority | None = None


class CurveKeys(msgspec.Struct, frozen=True):
    """The cluster's one CURVE key pair, z85; every process of the cluster has it, nobody else."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return "CurveKeys(...)"


class ApiServerAddress(msgspec.Struct, frozen=True):
    """Where one API server takes outputs and hands out requests; fixed for the cluster's life."""

    index: int
    input: str
    output: str


class PeerAddress(msgspec.Struct, frozen=True):
    """Where an instance takes letters of other llumlets, and where its transport takes KV blocks."""

    letters: str
    transport: bytes

    def __repr__(self) -> str:
        return f"PeerAddress({self.letters!r})"  # the transport's part holds a secret


class ControlAddress(msgspec.Struct, frozen=True):
    """The manager's two sockets."""

    commands: str
    news: str


class Endpoints(msgspec.Struct, frozen=True):
    """All addresses a cluster process needs, decided by llumnixd before anything starts."""

    control: ControlAddress
    api_servers: tuple[ApiServerAddress, ...]
    private_dir: str
    """Directory for Unix sockets and shared memory that only our user can enter."""
    curve: CurveKeys | None = None
    """None: `ipc://` in a directory only our user can enter."""


def ipc_endpoints(run_dir: Path, num_api_servers: int) -> Endpoints:
    """Endpoints inside one machine; `run_dir` must have mode 0700 and a short path."""
    return Endpoints(
        control=ControlAddress(f"ipc://{run_dir}/ctl.cmd", f"ipc://{run_dir}/ctl.news"),
        api_servers=tuple(
            ApiServerAddress(k, f"ipc://{run_dir}/api{k}.in", f"ipc://{run_dir}/api{k}.out")
            for k in range(num_api_servers)
        ),
        private_dir=str(run_dir),
    )


# ---- to the manager -------------------------------------------------------------------------------------


class EngineUp(msgspec.Struct, frozen=True, tag=True):
    """The engine is built; it asks for the engine-wide state it must take on before it serves."""

    uid: int
    ready: bytes
    """vLLM's EngineCoreReadyResponse, msgpack."""
    address: PeerAddress


class EngineServes(msgspec.Struct, frozen=True, tag=True):
    """Engine-wide state is replayed; requests may come."""

    uid: int


class Report(msgspec.Struct, frozen=True, tag=True):
    report: InstanceReport


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    beat: Beat


class RequestRow(msgspec.Struct, frozen=True, array_like=True):
    """One request as its engine sees it."""

    request_id: str
    priority: int
    running: bool
    prompt_tokens: int
    output_tokens: int
    kv_blocks: int
    arrival_s: float
    """Unix time."""
    api_server: int
    preemptions: int


class RequestTable(msgspec.Struct, frozen=True, tag=True):
    """All requests of an instance."""

    uid: int
    rows: tuple[RequestRow, ...]


class Held(msgspec.Struct, frozen=True, tag=True):
    """What an API server holds until an instance has room; told again whenever that changes.

    `rows`: all of them; None where they were told just now.
    """

    queue: HeldRequests
    rows: tuple[RequestRow, ...] | None


class StateOp(msgspec.Struct, frozen=True, tag=True):
    """An engine-wide call was made through an API server; joiners must take it on.

    `key` names the state (e.g. "lora:3", "pause"); a later op replaces the one of the same key, `call` None
    forgets it. `call` is vLLM's encoded (method, args): bytes that the manager never looks into.
    """

    table_version: int
    """The table that the call was fanned out to."""
    key: str
    call: tuple[bytes, ...] | None


class ApiServerUp(msgspec.Struct, frozen=True, tag=True):
    """An API server is connected and wants the table."""

    index: int
    pid: int


class ApiServerServes(msgspec.Struct, frozen=True, tag=True):
    """An API server's HTTP socket answers."""

    index: int


class LostContact(msgspec.Struct, frozen=True, tag=True):
    """An API server saw an instance die."""

    index: int
    uid: int
    reason: str


class MigrationNews(msgspec.Struct, frozen=True, tag=True):
    """A migration began, began a stage, or ended, told by its source."""

    migration: str
    request_id: str
    """Engine-side, at the source."""
    source: int
    target: int
    reason: str
    state: Literal["prepare", "copying", "committed", "aborted"]
    why: str
    stages: int
    blocks_sent: int
    blocks_skipped: int
    num_bytes: int
    copy_ms: float
    downtime_ms: float | None
    blocks_total: int | None = None
    """All that the request had to be sent when this was told; None: not known yet."""


class LatencySamples(msgspec.Struct, frozen=True, tag=True):
    """What clients of an API server have seen since it last told, in seconds."""

    index: int
    ttft_s: tuple[float, ...]
    """Of requests that got their first token."""
    tpot_s: tuple[float, ...]
    """Mean time per output token of requests that finished."""


class Done(msgspec.Struct, frozen=True, tag=True):
    """Answer to a command; `error` None means that it was carried out."""

    command_id: int
    error: str | None = None
    result: str = ""


ToManager = (
    EngineUp
    | EngineServes
    | Report
    | Heartbeat
    | RequestTable
    | Held
    | StateOp
    | ApiServerUp
    | ApiServerServes
    | LostContact
    | MigrationNews
    | LatencySamples
    | Done
)


# ---- from the manager -----------------------------------------------------------------------------------


class Replay(msgspec.Struct, frozen=True, tag=True):
    """Engine-wide calls to make; with `then_serve` the instance then answers EngineServes."""

    calls: tuple[tuple[bytes, ...], ...]
    then_serve: bool


class TableEntry(msgspec.Struct, frozen=True):
    entry: DispatchEntry
    ready: bytes
    """vLLM's EngineCoreReadyResponse of that instance."""


class Table(msgspec.Struct, frozen=True, tag=True):
    """Which instances exist; one that is absent is dead."""

    version: int
    entries: tuple[TableEntry, ...]


class SetPriority(msgspec.Struct, frozen=True, tag=True):
    """Change a request's engine priority, in queue order too; to an API server: of one that it holds."""

    command_id: int
    request_id: str
    priority: int


class AbortRequest(msgspec.Struct, frozen=True, tag=True):
    """Abort a client's request (all its n children) and tell the client why."""

    command_id: int
    request_id: str
    """Engine-side id of any child."""
    reason: str


class TellRequests(msgspec.Struct, frozen=True, tag=True):
    """Tell all requests as of now, by RequestTable or Held in front of Done."""

    command_id: int


class Move(msgspec.Struct, frozen=True, tag=True):
    """Move one request to another instance; answered by Done with the migration's id."""

    command_id: int
    request_id: str
    target: int
    address: PeerAddress
    reason: str
    then: tuple[str, ...] = ()
    """Requests that follow it, one after the other, if it is not refused."""


class MoveAway(msgspec.Struct, frozen=True, tag=True):
    """For the next moment move requests there, as llumnix.core.victims chooses them."""

    target: int
    address: PeerAddress
    reason: str
    for_s: float
    goal: MoveGoal


class PeerGone(msgspec.Struct, frozen=True, tag=True):
    """An instance is dead."""

    uid: int
    reason: str


class StopServing(msgspec.Struct, frozen=True, tag=True):
    """Refuse new requests, let running ones finish for `drain_s`, abort the rest, then end."""

    drain_s: float


class StopEngine(msgspec.Struct, frozen=True, tag=True):
    """End the engine loop; what still runs is resumed elsewhere."""


FromManager = (
    Replay
    | Table
    | SetPriority
    | AbortRequest
    | TellRequests
    | Move
    | MoveAway
    | PeerGone
    | StopServing
    | StopEngine
)


@dataclass(frozen=True, slots=True)
class Codec:
    """Encoder and typed decoders of the control channel; not thread-safe."""

    encoder: msgspec.msgpack.Encoder
    to_manager: msgspec.msgpack.Decoder[ToManager]
    from_manager: msgspec.msgpack.Decoder[FromManager]


def codec() -> Codec:
    return Codec(
        msgspec.msgpack.Encoder(),
        msgspec.msgpack.Decoder(ToManager),
        msgspec.msgpack.Decoder(FromManager),
    )
