"""Real llumlets on vLLM's own schedulers: whatever befalls a migration, at any step, the books stay right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.engines import build_engine as build_engine  # first: sets what vLLM reads when it is imported

from tests.benchmarks.bench_faults import FAULTS, STEPS, build_world, finish, inject  # isort: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_books_are_right_after_a_fault_at_any_step(fault: str, tmp_path: Path) -> None:
    world = build_world(tmp_path, seed=len(fault))
    struck = {step for step in STEPS if any(inject(world, fault, step) for _ in range(6))}
    finish(world)
    assert world.problems == []
    assert {"Prepare", "Ack", "Stage", "send"} <= struck  # what hardly a migration goes without
    assert world.ends["committed"] + world.ends["aborted"] > 0
