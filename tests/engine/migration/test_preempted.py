"""Requests that are preempted before, while or after they move."""

from __future__ import annotations

import pytest

from llumnix.errors import RefusedError
from tests.engine.migration.lab import BLOCK_SIZE, Lab, PauseState, prompt, sampling
from tests.engine.migration.move import Move
from tests.engine.migration.test_exact import KINDS, check_same, unmoved


def preempt(lab: Lab, request_id: str) -> None:
    """An older request comes and needs the last block."""
    lab.submit("older", prompt(BLOCK_SIZE - 3, seed=200), sampling(max_tokens=90), arrival_time=0.5)
    lab.step()
    with lab.short_of_blocks(0):
        while lab.port.source.progress(request_id).num_preemptions == 0:  # type: ignore[union-attr]
            lab.step()


@pytest.mark.parametrize("kind", ["penalties", "json schema"])
def test_preempted_then_moved_while_it_waits(any_labs: tuple[Lab, Lab], kind: str) -> None:
    source, target = any_labs
    params, tokens = sampling(**KINDS[kind] | {"min_tokens": 20, "max_tokens": 30}), prompt(100, seed=5)
    if kind == "json schema":
        params.min_tokens = 0
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params)
    while len(result.tokens) < 5:
        source.step()
    source.engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert source.port.source.progress("a").queued  # type: ignore[union-attr]
    while not source.port.source.is_quiet("a"):
        source.engine.scheduler.set_pause_state(PauseState.PAUSED_ALL)
        source.step()
    move = Move(source, target, "a", "a-1")
    assert move.run(num_stages=0)
    source.engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    assert move.num_sent_blocks == 0
    target.run("a-1")
    check_same(result, reference)


def test_preempted_and_run_again_before_it_moves(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    params, tokens = sampling(temperature=1.0, seed=11, max_tokens=40), prompt(100, seed=5)
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params)
    while len(result.tokens) < 5:
        source.step()
    source.engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    for _ in range(4):
        source.step()
    assert Move(source, target, "a", "a-1").run()
    assert target.request("a-1").num_preemptions == 1
    target.run("a-1")
    check_same(result, reference)


@pytest.mark.parametrize("frozen", [False, True])
def test_preempted_during_the_copy_the_migration_ends_and_another_succeeds(
    any_labs: tuple[Lab, Lab], frozen: bool
) -> None:
    source, target = any_labs
    params, tokens = sampling(max_tokens=60), prompt(60, seed=6)
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params, arrival_time=9.0)
    while not result.tokens:
        source.step()
    move = Move(source, target, "a", "a-1")
    move.prepare()
    move.copy_stage()
    if frozen:
        source.port.source.freeze("a")
    preempt(source, "a")
    if frozen:
        with pytest.raises(RefusedError, match="preempted while it was being moved"):
            source.port.source.final_state("a")
    else:
        assert not move.freeze()
    move.abort()
    assert source.port.check_integrity() == []
    while not source.port.source.is_quiet("a"):
        source.step()
    assert Move(source, target, "a", "a-2").run(num_stages=0)
    target.run("a-2")
    check_same(result, reference)
    assert source.port.check_integrity() == []


def test_a_moved_request_can_be_preempted_at_the_target(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    params, tokens = sampling(max_tokens=60, presence_penalty=0.5), prompt(60, seed=6)
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params, arrival_time=9.0)
    while not result.tokens:
        source.step()
    assert Move(source, target, "a", "a-1").run()
    preempt(target, "a-1")
    target.run("a-1")
    check_same(result, reference)


def test_preempted_while_the_target_takes_it_the_request_does_not_run_on(labs: tuple[Lab, Lab]) -> None:
    """Everything has been sent: whether the target has it is not known yet, and two runs must not be."""
    source, target = labs
    params, tokens = sampling(max_tokens=60), prompt(60, seed=6)
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params, arrival_time=9.0)
    while not result.tokens:
        source.step()
    move = Move(source, target, "a", "a-1")
    move.prepare()
    assert move.freeze()
    final = source.port.source.final_state("a")
    num_tokens = len(result.tokens)
    preempt(source, "a")
    for _ in range(5):
        source.port.source.progress("a")  # as the llumlet does after each step
        source.step()
    assert len(result.tokens) == num_tokens
    assert source.port.check_integrity() == []
    source.port.source.release("a")
    assert source.port.check_integrity() == []
    assert move.reservation is not None
    target.port.target.free(move.reservation)
    assert final.num_computed_tokens > 0
    source.run("older")
    assert "a" not in source.engine.scheduler.requests
    assert result.tokens == reference.tokens[:num_tokens]
