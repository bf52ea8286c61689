"""Decode steps run at once leave the scheduler as the same steps taken one by one."""

from __future__ import annotations

import random

import pytest

from llumnix.engine.simulated.decode_ahead import DecodeAhead, undisturbed
from tests.sim.engines import EngineCore, build_engine, executor, profile_of, state, submit


def step(engine: EngineCore) -> float:
    engine.step()
    return executor(engine).step_ms


def preempted(engine: EngineCore) -> int:
    return len(executor(engine).preempted)


def can_run_ahead(engine: EngineCore) -> bool:
    return undisturbed(engine.scheduler, executor(engine).only_decoded)


@pytest.mark.parametrize("seed", range(4))
def test_any_number_of_steps_ahead_is_those_steps_one_by_one(seed: int) -> None:
    draw = random.Random(seed)
    slow, fast = build_engine(), build_engine()
    time_slow = time_fast = 0.0
    num_ahead = num_preempted = number = 0
    for _ in range(120):
        for _ in range(draw.choice((0, 0, 1, 4))):
            number += 1
            size = (draw.choice((3, 40, 900, 3000)), draw.randint(1, 400), draw.choice((0, 0, -1)))
            for engine in (slow, fast):
                submit(engine, number, size[0], size[1], priority=size[2])
        for _ in range(draw.randint(1, 3)):
            time_slow += step(slow) / 1e3
            time_fast += step(fast) / 1e3
            num_preempted += preempted(slow)
        if not can_run_ahead(fast):
            continue
        run = DecodeAhead(fast.scheduler, profile_of(fast))
        times = run.times(time_fast)
        if not times:
            continue
        half, total = sorted(draw.randint(1, len(times)) for _ in range(2))
        run.run_to(half)
        run.run_to(total)
        run.settle()
        time_fast = times[total - 1]
        for _ in range(total):
            time_slow += step(slow) / 1e3
        num_ahead += total
        assert state(fast) == state(slow)
        assert time_fast == time_slow
    assert num_ahead > 300
    assert num_preempted > 0


def test_a_run_ends_before_the_step_in_which_a_request_makes_its_last_token() -> None:
    engine = build_engine()
    short, long = submit(engine, 1, 20, 30), submit(engine, 2, 20, 90)
    step(engine)
    run = DecodeAhead(engine.scheduler, profile_of(engine))
    times = run.times(0.0)
    assert len(times) == 30 - 1 - 1
    run.run_to(len(times))
    run.settle()
    outputs, _ = engine.step()
    finished = [o.request_id for o in outputs[0].outputs if o.finish_reason is not None]
    assert finished == [short]
    assert engine.scheduler.requests[long].num_output_tokens == 30


def test_a_batch_that_prefills_or_has_just_let_somebody_in_is_not_run_ahead() -> None:
    engine = build_engine()
    submit(engine, 1, 5000, 10)
    step(engine)
    assert not can_run_ahead(engine)  # 2,048 of 5,000 tokens are computed
    step(engine)
    step(engine)
    assert can_run_ahead(engine)
    submit(engine, 2, 100, 10)
    submit(engine, 3, 10_000, 10)
    step(engine)
    assert not can_run_ahead(engine)  # the third has not been tried beside the second
    step(engine)
    assert can_run_ahead(engine)  # it was, in vain
