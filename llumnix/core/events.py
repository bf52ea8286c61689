"""Events the scheduler is told, and actions it answers with: the vocabulary of llumnix.core.Scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from llumnix.core.load import InstanceReport


class CommandRefused(Exception):
    """A command that cannot be carried out now; the message says why, and nothing was changed."""


class UnknownInstance(Exception):
    """No instance has the id that a command names; nothing was changed."""


class InstanceState(StrEnum):
    """States of an instance as operators see them (admin-api.md)."""

    PENDING = "pending"  # asked of Ray, no place yet
    STARTING = "starting"  # process runs, engine loads
    RUNNING = "running"
    CORDONED = "cordoned"  # serves what it has, takes nothing new
    DRAINING = "draining"
    DRAINED = "drained"  # empty and cordoned: safe to remove
    STOPPING = "stopping"  # its process is being ended: a removal, or it hangs or never came up
    RESTARTING = "restarting"  # died; waits for its back-off
    FAILED = "failed"  # died too often; an operator must act
    DEAD = "dead"  # removed; kept in the view for a while


# ---- events ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InstancePlaced:
    """Ray placed the instance's process; the engine loads."""

    uid: int
    node: str
    pid: int


@dataclass(frozen=True, slots=True)
class InstanceReady:
    """The instance's engine is loaded and takes requests."""

    uid: int


@dataclass(frozen=True, slots=True)
class InstanceDied:
    """The instance's process ended, or never started; `reason` is the root cause in one line."""

    uid: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reported:
    report: InstanceReport


@dataclass(frozen=True, slots=True)
class Beat:
    """Heartbeat through the instance's engine loop, sent by its own thread.

    `loop_age_s`: since the loop last came round; `step_age_s`: since the model step under way began (None:
    not in a step); `cpu_share`: part of the last second that the loop's thread was on a CPU, 0..1.
    """

    uid: int
    loop_age_s: float
    step_age_s: float | None
    cpu_share: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; sent at least every 0.25 s."""


@dataclass(frozen=True, slots=True)
class AddInstances:
    count: int


@dataclass(frozen=True, slots=True)
class Cordon:
    instance: str


@dataclass(frozen=True, slots=True)
class Uncordon:
    instance: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Empty the instance within `timeout_s` (infinity: no limit); with `remove` it is stopped once empty or
    out of time."""

    instance: str
    timeout_s: float
    remove: bool = False


Event = (
    InstancePlaced
    | InstanceReady
    | InstanceDied
    | Reported
    | Beat
    | Tick
    | AddInstances
    | Cordon
    | Uncordon
    | Drain
)


# ---- actions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartInstance:
    """Start a new incarnation `uid` of instance `instance`."""

    instance: str
    uid: int
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class StopInstance:
    """End the instance's process in good order (it is empty, or its time is up)."""

    instance: str
    uid: int
    reason: str


@dataclass(frozen=True, slots=True)
class KillInstance:
    """End the instance's process at once: it hangs, or never came up."""

    instance: str
    uid: int
    reason: str


@dataclass(frozen=True, slots=True)
class MoveRequests:
    """Have the source's llumlet move requests to `target`, until told otherwise or `for_s` have passed."""

    source: int
    """uid"""
    target: int
    """uid"""
    reason: str
    for_s: float


@dataclass(frozen=True, slots=True)
class DispatchEntry:
    """One instance that API servers know: `open` means that new requests may go there."""

    uid: int
    instance: str
    open: bool


@dataclass(frozen=True, slots=True)
class PublishTable:
    """Tell all API servers which instances exist; an incarnation that is absent is dead."""

    version: int
    entries: tuple[DispatchEntry, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """Write to the journal: `kind` like "instance.died", with the reason in `message`."""

    kind: str
    severity: str  # "info" | "warning" | "error"
    target: str
    message: str


Action = StartInstance | StopInstance | KillInstance | MoveRequests | PublishTable | Record
