"""What a step is about to take: reservations give way by it, before vLLM preempts anybody."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.migration.lab import Lab, prompt, sampling
from tests.sim.engines import build_engine, submit

from llumnix.engine.migration.port import MigrationPort  # isort: skip


def held(port: MigrationPort) -> dict[str, int]:
    """Blocks of each running request."""
    running = port._access.scheduler.running
    return {r.request_id: len(port._access.block_ids(r.request_id)) for r in running}


def wanted(engine: Any, port: MigrationPort) -> int:
    free = engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    return port.num_missing_blocks() + int(free)


def taken(before: dict[str, int], after: dict[str, int]) -> int:
    """By those that ran before, all of which run on."""
    return sum(after[request_id] - num_blocks for request_id, num_blocks in before.items())


@pytest.mark.parametrize("threshold", [0, 100])
def test_the_blocks_that_a_step_will_take_are_told_before_it(threshold: int) -> None:
    """Decodes at a block's end, and prefills whose next chunk brings several blocks."""
    engine = build_engine()
    port = MigrationPort(engine)
    scheduler: Any = engine.scheduler
    scheduler.scheduler_config.long_prefill_token_threshold = threshold
    block_size, budget = port.block_size, scheduler.max_num_scheduled_tokens
    lengths = [block_size - 1, block_size, block_size + 1, 3 * block_size, budget + 5, 2 * budget]
    seen = set()
    for number, num_tokens in enumerate(lengths):
        submit(engine, number, num_tokens, 200)
        before, told = held(port), wanted(engine, port)
        engine.step()
        assert told == taken(before, held(port))
        seen.add(told)
    for _ in range(3 * block_size):
        before, told = held(port), wanted(engine, port)
        engine.step()
        assert told == taken(before, held(port))
        seen.add(told)
    assert {0, 1} < seen


def test_a_held_back_request_takes_none() -> None:
    engine = build_engine()
    port = MigrationPort(engine)
    request_id = submit(engine, 1, port.block_size, 200)
    engine.step()
    assert wanted(engine, port) == 1
    port.source.freeze(request_id)
    assert wanted(engine, port) == 0


def test_the_same_where_a_step_is_planned_before_the_last_one_has_ended(async_labs: tuple[Lab, Lab]) -> None:
    lab = async_labs[0]
    for number, num_tokens in enumerate((31, 32, 33, 64, 90)):
        lab.submit(f"a{number}", prompt(num_tokens, seed=number), sampling(max_tokens=60))
    lab.step()
    for _ in range(50):
        before, told = held(lab.port), wanted(lab.engine, lab.port)
        lab.step()
        assert told == taken(before, held(lab.port))
    lab.reset()
