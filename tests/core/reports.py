"""Reports for tests: an instance of 100 blocks of 16 tokens, empty unless told otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from llumnix.core.load import ClassLoad, InstanceReport

EMPTY = InstanceReport(
    uid=1, seq=1, block_size=16, total_blocks=100, used_blocks=0, max_running=8, running=0, waiting=0
)


def report(**fields: Any) -> InstanceReport:
    """An empty instance's report with these fields changed; all of priority 0 unless `classes` is given."""
    made = replace(EMPTY, **fields)
    if "classes" not in fields:
        made = replace(made, classes={0: ClassLoad(made.running, made.waiting, made.used_blocks)})
    return made


PRIORITIES = (-10, 0, 5)


@st.composite
def reports(draw: st.DrawFn, max_total: int = 2000) -> InstanceReport:
    """Any report that keeps the invariants of InstanceReport."""
    classes, left = {}, draw(st.integers(1, max_total))
    total_blocks = left
    for priority in draw(st.sets(st.sampled_from(PRIORITIES))):
        running = draw(st.integers(0, 40))
        used = draw(st.integers(0, left)) if running else 0
        left -= used
        classes[priority] = ClassLoad(running, draw(st.integers(0, 40)), used)
    running, waiting = sum(c.running for c in classes.values()), sum(c.waiting for c in classes.values())
    queued_blocks = draw(st.integers(1, 4000)) if waiting else 0
    return InstanceReport(
        uid=1,
        seq=draw(st.integers(0, 1000)),
        block_size=draw(st.sampled_from((16, 32, 128))),
        total_blocks=total_blocks,
        used_blocks=total_blocks - left,
        max_running=draw(st.integers(1, 256)),
        running=running,
        waiting=waiting,
        queued_blocks=queued_blocks,
        head_blocks=draw(st.integers(1, queued_blocks)) if waiting else 0,
        classes=classes,
        paused=draw(st.booleans()),
    )
