"""What the scheduler can be told to do differently; llumnix.config fills it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Settings of core.Scheduler. Invariant: all times are positive, `restart_limit >= 0`."""

    headroom_tokens: Mapping[int, int] = field(default_factory=dict)
    """Headroom of each engine priority, in tokens."""
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
    dead_kept_s: float = 60.0
    """A removed instance stays in the view this long."""
    first_uid: int = 1
    """Above every uid of the cluster's life so far."""
    first_instance: int = 0
    """Number of the first new instance id, above every one of the cluster's life so far."""
