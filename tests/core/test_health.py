"""A hung engine loop is told from a busy one by its heartbeat."""

from __future__ import annotations

import pytest

from llumnix.core.events import Beat
from llumnix.core.health import hang_reason


def judge(beat: Beat | None, silence_s: float = 0.1) -> str | None:
    return hang_reason(beat, silence_s, heartbeat_timeout_s=10, step_timeout_s=300)


@pytest.mark.parametrize(
    "beat",
    [
        None,
        Beat(1, loop_age_s=0.2, step_age_s=None, cpu_share=0.0),
        Beat(1, loop_age_s=10.0, step_age_s=None, cpu_share=0.0),
        Beat(1, loop_age_s=120.0, step_age_s=119.0, cpu_share=0.9),  # a long prefill
        Beat(1, loop_age_s=12.0, step_age_s=None, cpu_share=0.0, starved_s=2.5),  # a machine with much to do
        Beat(1, loop_age_s=60.0, step_age_s=60.0, cpu_share=0.0, may_wait=True),  # an adapter on a slow disk
    ],
)
def test_an_idle_or_busy_loop_is_well(beat: Beat | None) -> None:
    assert judge(beat) is None


@pytest.mark.parametrize(
    ("beat", "numbers"),
    [
        (
            Beat(1, loop_age_s=10.5, step_age_s=None, cpu_share=0.9),
            "10.5 s (limit 10 s) and is not in a model step",
        ),
        (Beat(1, loop_age_s=11.0, step_age_s=10.9, cpu_share=0.01), "10.9 s uses 1% of a CPU"),
        (
            Beat(1, loop_age_s=301.0, step_age_s=300.5, cpu_share=0.0, may_wait=True),
            "takes 300.5 s (limit 300 s)",
        ),
        (Beat(1, loop_age_s=14.0, step_age_s=None, cpu_share=0.0, starved_s=2.5), "11.5 s (limit 10 s)"),
        (Beat(1, loop_age_s=301.0, step_age_s=300.5, cpu_share=1.0), "takes 300.5 s (limit 300 s)"),
    ],
)
def test_a_stuck_loop_is_named_with_its_numbers(beat: Beat, numbers: str) -> None:
    reason = judge(beat)
    assert reason is not None and numbers in reason


def test_silence_is_a_hang_whatever_the_last_beat_said() -> None:
    assert judge(Beat(1, 0.0, None, 1.0), silence_s=10.0) is None
    assert judge(Beat(1, 0.0, None, 1.0), silence_s=10.1) == "no heartbeat for 10.1 s (limit 10 s)"
    assert judge(None, silence_s=10.1) is not None
