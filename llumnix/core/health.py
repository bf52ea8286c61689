"""Whether an engine loop hangs, judged by its heartbeat.

A busy one does not (a long prefill, a compile), nor one that gets no CPU as the machine has too much to do,
nor one that loads or moves weights for an engine-wide call, which may take as long as any step.
"""

from __future__ import annotations

from llumnix.core.events import Beat

# A loop that computes is on a CPU nearly all the time, a stuck one hardly ever.
IDLE_CPU_SHARE = 0.05


def hang_reason(
    beat: Beat | None, silence_s: float, *, heartbeat_timeout_s: float, step_timeout_s: float
) -> str | None:
    """Why the instance is taken for hung, or None.

    `beat` is the latest heartbeat, `silence_s` the time since it came (or since the instance was ready).
    """
    if silence_s > heartbeat_timeout_s:
        return f"no heartbeat for {silence_s:.1f} s (limit {heartbeat_timeout_s:g} s)"
    if beat is None:
        return None
    stuck_s = beat.loop_age_s - beat.starved_s
    if stuck_s <= heartbeat_timeout_s:
        return None
    stuck = f"engine loop has not come round for {stuck_s:.1f} s (limit {heartbeat_timeout_s:g} s)"
    if beat.step_age_s is None:
        return f"{stuck} and is not in a model step"
    if beat.cpu_share < IDLE_CPU_SHARE and not beat.may_wait:
        return f"{stuck}, its step of {beat.step_age_s:.1f} s uses {beat.cpu_share:.0%} of a CPU"
    if beat.step_age_s > step_timeout_s:
        return f"{stuck}, its step takes {beat.step_age_s:.1f} s (limit {step_timeout_s:g} s)"
    return None
