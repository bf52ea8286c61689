"""A request that moved returns what it would have returned unmoved."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llumnix.engine.migration.state import FinalState, PromptLogprobs, WorkerState
from tests.engine.migration.lab import CHUNK_TOKENS, Lab, Result, json_schema, prompt, sampling
from tests.engine.migration.move import Move, there_and_back

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 7},
    "seeded top-p top-k": {"temperature": 0.9, "seed": 8, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
    "penalties": {"presence_penalty": 0.8, "frequency_penalty": 0.7, "repetition_penalty": 1.3},
    "logprobs": {"logprobs": 3},
    "prompt logprobs": {"prompt_logprobs": 2, "logprobs": 0},
    "min tokens": {"min_tokens": 15, "ignore_eos": False, "logit_bias": {2: 8.0}},
    "stop ids": {"stop_token_ids": list(range(300, 420)), "min_tokens": 14},
    "logit bias": {"logit_bias": {500: 4.0, 501: 3.0}, "repetition_penalty": 1.1},
    "bad words": {"bad_words": ["the", "e", " a"]},
    "allowed tokens": {"allowed_token_ids": list(range(100, 140)), "temperature": 1.0, "seed": 3},
    "json schema": {"structured_outputs": json_schema(), "max_tokens": 40, "ignore_eos": False},
    "json schema seeded": {
        "structured_outputs": json_schema(),
        "max_tokens": 40,
        "temperature": 1.0,
        "seed": 5,
    },
}


_unmoved: dict[str, Result] = {}


def unmoved(lab: Lab, tokens: list[int], params: Any) -> Result:
    """What the request returns alone on an engine; taken once for every request."""
    key = f"{tokens} {msgspec.to_builtins(params)} {lab.engine.scheduler.max_num_scheduled_tokens}"
    if key not in _unmoved:
        _unmoved[key] = lab.submit("unmoved", tokens, params)
        lab.run("unmoved")
        lab.reset()
    return _unmoved[key]


def check_same(moved: Result, reference: Result) -> None:
    assert moved.tokens == reference.tokens
    assert moved.finish == reference.finish
    assert moved.logprob_ids == reference.logprob_ids
    assert [pytest.approx(row, abs=1e-5) for row in reference.logprobs] == moved.logprobs
    assert (moved.prompt_logprobs is None) == (reference.prompt_logprobs is None)
    if reference.prompt_logprobs is not None:
        assert [pytest.approx(row, abs=1e-5) for row in reference.prompt_logprobs] == moved.prompt_logprobs
    assert len(moved.prefill_stats) == len(reference.prefill_stats) == 1
    assert moved.events.count("QUEUED") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_request_is_the_same_to_the_token(any_labs: tuple[Lab, Lab], kind: str) -> None:
    source, target = any_labs
    params, tokens = sampling(**KINDS[kind]), prompt(70, seed=len(kind))
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params)
    while len(result.tokens) < 6:
        source.step()
    assert Move(source, target, "a", "a-1").run()
    target.run("a-1")
    check_same(result, reference)
    source.idle()
    for lab in any_labs:
        assert lab.port.check_integrity() == []
        assert lab.num_free_blocks() == source.engine.scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1


@pytest.mark.parametrize("kind", ["seeded", "penalties", "json schema", "logprobs"])
def test_there_and_back_again_and_again(any_labs: tuple[Lab, Lab], kind: str) -> None:
    source, target = any_labs
    params, tokens = sampling(**KINDS[kind] | {"max_tokens": 30}), prompt(50, seed=1)
    reference = unmoved(source, tokens, params)
    result, num_hops = there_and_back(source, target, tokens, params)
    assert num_hops >= 4
    check_same(result, reference)


def test_hops_without_a_step_between_them(labs: tuple[Lab, Lab]) -> None:
    """An adopted request that has not been scheduled yet moves on, with its worker state."""
    source, target = labs
    params, tokens = sampling(temperature=1.0, seed=4), prompt(60)
    reference = unmoved(source, tokens, params)
    result = source.submit("a-0", tokens, params)
    for _ in range(5):
        source.step()
    assert Move(source, target, "a-0", "a-1").run(steps_between=0)
    assert Move(target, source, "a-1", "a-2").run(steps_between=0)
    source.run("a-2")
    check_same(result, reference)


@pytest.mark.parametrize(
    ("kind", "num_steps"),
    [("greedy", 2), ("seeded", 1), ("prompt logprobs", 1), ("penalties", 1), ("json schema", 1)],
)
def test_moved_in_the_middle_of_its_prefill(any_labs: tuple[Lab, Lab], kind: str, num_steps: int) -> None:
    source, target = any_labs
    params, tokens = sampling(**KINDS[kind]), prompt(2 * CHUNK_TOKENS + 90, seed=2)
    with source.in_chunks():
        reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params)
    with source.in_chunks():
        while source.request("a").num_computed_tokens < num_steps * CHUNK_TOKENS:
            source.step()
    assert Move(source, target, "a", "a-1").run(num_stages=0)
    assert result.tokens == []
    assert target.request("a-1").num_computed_tokens == num_steps * CHUNK_TOKENS
    with target.in_chunks():
        target.run("a-1")
    check_same(result, reference)
    assert result.prefill_stats[0].num_computed_tokens == len(tokens)


@pytest.mark.parametrize("kind", ["greedy", "seeded", "json schema", "prompt logprobs"])
def test_moved_while_waiting(labs: tuple[Lab, Lab], kind: str) -> None:
    source, target = labs
    params, tokens = sampling(**KINDS[kind]), prompt(100, seed=3)
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params)  # with a grammar: not compiled yet
    move = Move(source, target, "a", "a-1")
    assert move.run(num_stages=0)
    assert move.num_sent_blocks == 0
    target.run("a-1")
    check_same(result, reference)
    assert source.engine.scheduler.get_num_unfinished_requests() == 0


def test_unseeded_sampling_runs_on_from_the_same_tokens(labs: tuple[Lab, Lab]) -> None:
    """vLLM's V1 runner draws for it from a generator of the whole process, which two engines here share."""
    source, target = labs
    import torch

    params, tokens = sampling(temperature=1.0), prompt(60)
    torch.manual_seed(3)
    reference = source.submit("unmoved", tokens, params)
    source.run("unmoved")
    source.reset()
    torch.manual_seed(3)
    result = source.submit("a", tokens, params)
    for _ in range(6):
        source.step()
    assert Move(source, target, "a", "a-1").run()
    target.run("a-1")
    check_same(result, reference)


def test_children_of_one_request_move_one_by_one(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    tokens = prompt(70)
    children = {f"{n}_a": sampling(temperature=1.0, seed=40 + n) for n in range(3)}
    references = {child: unmoved(source, tokens, params) for child, params in children.items()}
    results = {child: source.submit(child, tokens, params) for child, params in children.items()}
    for _ in range(5):
        source.step()
    assert Move(source, target, "1_a", "1_a-1").run()
    assert Move(source, target, "2_a", "2_a-1").run()
    target.run("1_a-1", "2_a-1")
    source.run("0_a")
    for child, result in results.items():
        check_same(result, references[child])


def without_generator(final: FinalState) -> FinalState:
    """The control: the generator starts from its seed again."""
    import torch

    fresh = torch.Generator()
    fresh.manual_seed(7)
    state = WorkerState(generator=fresh.get_state().numpy().tobytes())
    return msgspec.structs.replace(final, workers=[msgspec.msgpack.encode(state)])


def test_control_a_generator_that_starts_again_is_caught(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    params, tokens = sampling(temperature=1.0, seed=7), prompt(70)
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params)
    for _ in range(6):
        source.step()
    assert Move(source, target, "a", "a-1", tamper=without_generator).run()
    target.run("a-1")
    assert result.tokens[:6] == reference.tokens[:6]
    assert result.tokens != reference.tokens


def test_control_kv_that_was_not_copied_is_caught(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    params, tokens = sampling(), prompt(90, seed=6)
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params)
    for _ in range(4):
        source.step()
    for view in target.views:
        view.zero_()
    assert Move(source, target, "a", "a-1", copies_kv=False).run()
    target.run("a-1")
    assert result.tokens != reference.tokens


def test_control_prompt_logprobs_that_start_again_are_caught(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    params, tokens = sampling(prompt_logprobs=1), prompt(CHUNK_TOKENS + 60)
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params)
    with source.in_chunks():
        source.step()

    def forget(final: FinalState) -> FinalState:
        state = msgspec.msgpack.decode(final.workers[0], type=WorkerState)
        assert isinstance(state.prompt_logprobs, PromptLogprobs)
        zeros = bytes(len(state.prompt_logprobs.logprobs.data))
        logprobs = msgspec.structs.replace(state.prompt_logprobs.logprobs, data=zeros)
        gathered = msgspec.structs.replace(state.prompt_logprobs, logprobs=logprobs)
        state = msgspec.structs.replace(state, prompt_logprobs=gathered)
        return msgspec.structs.replace(final, workers=[msgspec.msgpack.encode(state)])

    assert Move(source, target, "a", "a-1", tamper=forget).run(num_stages=0)
    target.run("a-1")
    assert result.prompt_logprobs is not None and reference.prompt_logprobs is not None
    assert result.prompt_logprobs[-1] == pytest.approx(reference.prompt_logprobs[-1], abs=1e-5)
    assert result.prompt_logprobs[0] != pytest.approx(reference.prompt_logprobs[0], abs=1e-5)


@pytest.mark.parametrize("kind", ["seeded", "seeded top-p top-k", "json schema seeded"])
def test_a_seeded_prompt_in_chunks_draws_as_in_a_single_step(any_labs: tuple[Lab, Lab], kind: str) -> None:
    """Stock vLLM on CPU would end here."""
    lab = any_labs[0]
    params, tokens = sampling(**KINDS[kind]), prompt(2 * CHUNK_TOKENS + 90, seed=2)
    reference = unmoved(lab, tokens, params)
    short = unmoved(lab, prompt(20), sampling(temperature=1.0, seed=9))
    neighbour = lab.submit("neighbour", prompt(20), sampling(temperature=1.0, seed=9))
    lab.step()
    with lab.in_chunks():
        result = lab.submit("a", tokens, params)
        lab.run("a", "neighbour")
    check_same(result, reference)
    assert neighbour.tokens == short.tokens
