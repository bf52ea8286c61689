"""Events the scheduler is told, and actions it answers with: the vocabulary of llumnix.core.Scheduler."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from llumnix.core.load import InstanceReport
from llumnix.core.victims import MoveGoal


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

    `loop_age_s`: since the loop last came round; `step_age_s`: since the model step, or engine-wide call,
    under way began (None: in neither); `starved_s`: of `loop_age_s`, how long the loop's thread could have
    run but got no CPU; `cpu_share`: part of the last second, without such waits, that it was on a CPU, 0..1;
    `may_wait`: it is a call that may wait for a disk, a network or a device.
    """

    uid: int
    loop_age_s: float
    step_age_s: float | None
    cpu_share: float
    starved_s: float = 0.0
    may_wait: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; sent at least every 0.25 s."""


@dataclass(frozen=True, slots=True)
class AddInstances:
    count: int


@dataclass(frozen=True, slots=True)
class DrainOrder:
    """A drain under way. `remove`: the instance is stopped when it is empty or the time is up.

    `is_surplus`: only because it is not needed; should it be before it is empty, it stays. `restart`: once
    empty its process is replaced, and it is cordoned again only where it `was_cordoned`.
    """

    started_at: float
    timeout_s: float
    remove: bool
    is_surplus: bool = False
    restart: bool = False
    was_cordoned: bool = False
    abort_left: bool = False
    abort_again_at: float | None = None
    """Its time is up and what was left is aborted; what has turned up since then is next."""
    not_after: float = math.inf
    """Its machine is taken away: whatever drain is ordered later, it ends by then."""

    @property
    def deadline(self) -> float:
        if self.abort_again_at is not None:
            return self.abort_again_at
        return min(self.started_at + self.timeout_s, self.not_after)


@dataclass(frozen=True, slots=True)
class AdoptedInstance:
    """An instance as the scheduler before this one knew it. `serves`: its process goes on, or its death will
    be told; otherwise it is started again."""

    instance: str
    uid: int
    incarnation: int
    node: str | None
    pid: int | None
    serves: bool
    cordoned: bool
    drain: DrainOrder | None = None
    """That of one that serves; its times are the scheduler's `now`."""
    cordoned_with_node: bool = False


@dataclass(frozen=True, slots=True)
class AdoptInstances:
    """First event of a scheduler that takes over from another: what ran goes on, and so do its tables.

    SchedulerSettings' `first_uid` and `first_instance` must lie above all numbers used so far.
    """

    instances: tuple[AdoptedInstance, ...]
    table_version: int
    """Of the last table that the former one may have published."""
    cordoned_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cordon:
    instance: str


@dataclass(frozen=True, slots=True)
class Uncordon:
    instance: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Empty the instance within `timeout_s` (infinity: no limit); with `remove` it is stopped once empty or
    out of time, with `restart` its process is replaced once it is empty.

    Out of time, what is left stays where it is, or with `abort_left` is aborted.
    """

    instance: str
    timeout_s: float
    remove: bool = False
    restart: bool = False
    abort_left: bool = False


@dataclass(frozen=True, slots=True)
class CordonNode:
    """Place no instance on the node any more, and cordon those that are there."""

    node: str


@dataclass(frozen=True, slots=True)
class UncordonNode:
    """Undo a CordonNode or DrainNode, and uncordon the instances that are there."""

    node: str


@dataclass(frozen=True, slots=True)
class DrainNode:
    """A CordonNode that also empties what is there: Drain for each instance that serves."""

    node: str
    timeout_s: float
    abort_left: bool = False


@dataclass(frozen=True, slots=True)
class NodeGone:
    """The node is dead and will not come back under this id."""

    node: str


@dataclass(frozen=True, slots=True)
class ScaleTo:
    """Have this many instances: start new ones, or drain and remove those with the fewest requests."""

    count: int


@dataclass(frozen=True, slots=True)
class TerminationNotice:
    """The instance's machine is taken away in `deadline_s` (spot style): move everything off it before."""

    instance: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class HeldRequests:
    """Requests that an API server holds as no instance has room for them (late binding)."""

    api_server: int
    num_requests: int
    num_tokens: int
    """Of all of them."""
    head_tokens: int
    """Of the one that is placed next."""
    head_priority: int
    """Its engine priority."""


Event = (
    InstancePlaced
    | InstanceReady
    | InstanceDied
    | Reported
    | Beat
    | Tick
    | AddInstances
    | AdoptInstances
    | Cordon
    | Uncordon
    | Drain
    | CordonNode
    | UncordonNode
    | DrainNode
    | NodeGone
    | ScaleTo
    | TerminationNotice
    | HeldRequests
)


# ---- actions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartInstance:
    """Start a new incarnation `uid` of instance `instance`, on any node but those in `not_on`."""

    instance: str
    uid: int
    incarnation: int
    reason: str
    not_on: tuple[str, ...] = ()


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
class AbortRequests:
    """Abort every request of the instance; their clients are told the reason."""

    uid: int
    reason: str


@dataclass(frozen=True, slots=True)
class MoveRequests:
    """Have the source's llumlet move requests to `target`, until told otherwise or `for_s` have passed.

    It chooses them by llumnix.core.victims.next_victim, until the goal is reached. The newest order to a
    source replaces the former one.
    """

    source: int
    """uid"""
    target: int
    """uid"""
    reason: str
    for_s: float
    goal: MoveGoal


@dataclass(frozen=True, slots=True)
class DispatchEntry:
    """One instance that API servers know: `open` means that new requests may go there.

    A `refuge` (it is cordoned) takes none, but what has lost its instance goes on there while none is open.
    """

    uid: int
    instance: str
    open: bool
    refuge: bool = False


@dataclass(frozen=True, slots=True)
class PublishTable:
    """Tell all API servers which instances exist; an incarnation that is absent is dead."""

    version: int
    entries: tuple[DispatchEntry, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """Write to the journal: `kind` like "instance.died", with the reason in `message`.

    `target` is an instance, unless it says otherwise ("node/ID").
    """

    kind: str
    severity: str  # "info" | "warning" | "error"
    target: str
    message: str


Action = StartInstance | StopInstance | KillInstance | AbortRequests | MoveRequests | PublishTable | Record
