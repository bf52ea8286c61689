"""What the scheduler can be told to do differently; llumnix.config fills it in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from llumnix.core.load import Headroom


@dataclass(frozen=True, slots=True)
class LlumnixSettings:
    """The paper's policy: one threshold parts sources from destinations."""

    migration_threshold: float = 3.0
    """Freeness, in blocks per running request."""


@dataclass(frozen=True, slots=True)
class LlumnixPlusSettings:
    """Our policy. Invariant: `migrate_in_threshold >= migrate_out_threshold`."""

    migrate_out_threshold: float = 3.0
    """Freeness below which an instance gives requests away."""
    migrate_in_threshold: float = 6.0
    """Freeness from which on an instance takes requests; with a move it must stay above the other one."""
    reserve_blocks: float = 1.0
    """A new request is held until an instance has room for it and this much per request to grow."""
    overtake_s: float = 30.0
    """Requests that find room may pass one that does not for this long."""
    prefix_reach: float = 2.0
    """An instance that was sent the same beginning of a prompt before is preferred to one that is freer by
    up to this factor; 1: freeness alone decides."""
    make_room: bool = True
    """Move running requests together so that a request fits that fits nowhere."""


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """Auto-scaling. Invariant: the minimum is at most the maximum, scaling up below scaling down."""

    enabled: bool = False
    min_instances: int = 1
    max_instances: float = math.inf
    scale_up_freeness: float = 10.0
    """Mean freeness of normal priority below which an instance is added."""
    scale_down_freeness: float = 60.0
    """Mean freeness above which one is drained and removed."""
    hold_s: float = 30.0
    """A bound must be crossed this long before anything is done, and so again after it was."""
    interval_s: float = 10.0


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Settings of core.Scheduler. Invariant: all times are positive, `restart_limit >= 0`."""

    policy: str = "llumnix+"
    """A name of llumnix.core.policies.POLICIES."""
    rescheduling: bool = True
    """False: requests move only for drains and by hand."""
    interval_s: float = 0.05
    """Between two rounds of rescheduling."""
    llumnix: LlumnixSettings = LlumnixSettings()
    llumnix_plus: LlumnixPlusSettings = LlumnixPlusSettings()
    scaling: ScalingSettings = ScalingSettings()
    headroom: Mapping[int, Headroom] = field(default_factory=dict)
    """By engine priority."""
    start_timeout_s: float = 600.0
    """From the process being placed to its engine being ready."""
    restart_backoff_s: float = 1.0
    """Wait before the first restart in a row; doubles with each further one."""
    restart_backoff_max_s: float = 60.0
    restart_limit: int = 5
    """Restarts in a row; the death after the last one makes the instance `failed`."""
    healthy_after_s: float = 60.0
    """An instance that served this long has put its former failures behind it."""
    heartbeat_timeout_s: float = 10.0
    step_timeout_s: float = 300.0
    """A model step that takes longer hangs, however busy it looks."""
    settle_s: float = 1.0
    """Requests may arrive this long after an instance was closed, as tables and requests are on the way."""
    stop_timeout_s: float = 30.0
    """An instance that was asked to stop and still lives is killed after this time."""
    kill_retry_s: float = 5.0
    """A kill is repeated until the death is confirmed."""
    notice_margin_s: float = 2.0
    """Before the deadline of a termination notice: what is left then is resumed elsewhere."""
    dead_kept_s: float = 60.0
    """A removed instance stays in the view this long."""
    first_uid: int = 1
    """Above every uid of the cluster's life so far."""
    first_instance: int = 0
    """Number of the first new instance id, above every one of the cluster's life so far."""
