"""Blocks: what the target has is not sent, what runs beside is not disturbed, nothing leaks."""

from __future__ import annotations

import pytest

from llumnix.errors import RefusedError
from tests.engine.migration.lab import BLOCK_SIZE, Lab, prompt, sampling
from tests.engine.migration.move import Move
from tests.engine.migration.test_exact import check_same, unmoved


def test_a_prefix_that_the_target_holds_is_not_sent(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    shared = prompt(10 * BLOCK_SIZE)
    params, tokens = sampling(), shared + prompt(70, seed=9)
    reference = unmoved(source, tokens, params)
    target.submit("before", shared + prompt(20, seed=5), sampling(max_tokens=2))
    target.run("before")
    result = source.submit("a", tokens, params)
    for _ in range(5):
        source.step()
    move = Move(source, target, "a", "a-1")
    assert move.run()
    assert move.reservation is not None and move.reservation.num_hit_blocks == 10
    assert move.num_sent_blocks == 3
    target.run("a-1")
    check_same(result, reference)


def test_what_was_sent_serves_the_next_prompt_with_the_same_prefix(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    shared = prompt(6 * BLOCK_SIZE)
    reference = unmoved(source, [*shared, 77, 78], sampling())
    source.submit("a", shared + prompt(9, seed=1), sampling())
    for _ in range(4):
        source.step()
    assert Move(source, target, "a", "a-1").run()
    result = target.submit("b", [*shared, 77, 78], sampling())
    target.run("b")
    check_same(result, reference)
    assert result.prefill_stats[0].num_local_cached_tokens == 6 * BLOCK_SIZE


def test_neighbours_on_both_engines_are_not_disturbed(any_labs: tuple[Lab, Lab]) -> None:
    source, target = any_labs
    shared = prompt(3 * BLOCK_SIZE, seed=8)
    prompts = {f"n{n}": shared + prompt(20 + 7 * n, seed=n) for n in range(6)}
    params = {n: sampling(temperature=n % 2, seed=n, max_tokens=40) for n in range(7)}
    references = {name: unmoved(source, p, params[n]) for n, (name, p) in enumerate(prompts.items())}
    mover = shared + prompt(50, seed=70)
    reference = unmoved(source, mover, params[6])
    results = {}
    for n, (name, tokens) in enumerate(prompts.items()):
        results[name] = (source if n < 3 else target).submit(name, tokens, params[n])
    result = source.submit("a-0", mover, params[6])
    here, there, hop = source, target, 0
    while result.finish is None:
        source.step()
        target.step()
        if result.tokens and len(result.tokens) % 6 == 0:
            assert Move(here, there, f"a-{hop}", f"a-{hop + 1}").run(num_stages=2)
            here, there, hop = there, here, hop + 1
    source.run(*list(prompts)[:3])
    target.run(*list(prompts)[3:])
    assert hop >= 3
    check_same(result, reference)
    for name, neighbour in results.items():
        check_same(neighbour, references[name])


def test_a_transfer_in_stages_sends_every_block_once(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    params, tokens = sampling(max_tokens=130), prompt(40)
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params)
    source.step()
    move = Move(source, target, "a", "a-1")
    move.prepare(num_ahead_tokens=BLOCK_SIZE)
    sent = []
    for _ in range(3):
        for _ in range(35):
            source.step()
        move.copy_stage()
        sent.append(move.num_sent_blocks)
    assert move.freeze()
    move.commit()
    assert sent == sorted(set(sent))
    assert move.num_sent_blocks == -(-target.request("a-1").num_computed_tokens // BLOCK_SIZE)
    target.run("a-1")
    check_same(result, reference)


def test_held_blocks_outlive_their_request(labs: tuple[Lab, Lab]) -> None:
    source, _ = labs
    source.submit("a", prompt(3 * BLOCK_SIZE + 5), sampling())
    source.step()
    before = source.num_free_blocks()
    blocks = [block for _, block in source.port.source.copyable_blocks("a")]
    assert len(blocks) == 3
    hold = source.port.source.hold(blocks)
    source.engine.abort_requests(["a"])
    assert source.num_free_blocks() == before + 1
    assert source.port.check_integrity() == []
    source.port.source.drop_hold(hold)
    assert source.num_free_blocks() == before + 4
    with pytest.raises(KeyError):
        source.port.source.drop_hold(hold)


def test_a_full_target_refuses_and_keeps_nothing(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    source.submit("a", prompt(5 * BLOCK_SIZE), sampling())
    source.step()
    source.step()
    with target.short_of_blocks(5):
        with pytest.raises(RefusedError, match="not enough free blocks"):
            Move(source, target, "a", "a-1").prepare()
        assert target.num_free_blocks() == 5
    assert target.port.check_integrity() == []


def test_room_for_tokens_to_come_is_refused_in_whole(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    source.submit("a", prompt(3 * BLOCK_SIZE), sampling())
    source.step()
    source.step()
    with target.short_of_blocks(4):
        with pytest.raises(RefusedError, match="not enough free blocks"):
            Move(source, target, "a", "a-1").prepare(num_ahead_tokens=10 * BLOCK_SIZE)
        assert target.num_free_blocks() == 4
    assert target.port.check_integrity() == []


def test_integrity_names_a_leaked_and_a_doubly_used_block(labs: tuple[Lab, Lab]) -> None:
    lab, _ = labs
    pool = lab.engine.scheduler.kv_cache_manager.block_pool
    (leaked,) = pool.get_new_blocks(1)
    assert lab.port.check_integrity() == [f"block {leaked.block_id} has 1 references, but 0 users"]
    leaked.ref_cnt = 0
    assert lab.port.check_integrity() == [f"block {leaked.block_id} is lost: unused, but not free"]
    leaked.ref_cnt = 1
    pool.free_blocks([leaked])
    assert lab.port.check_integrity() == []
