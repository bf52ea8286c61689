"""A request whose instance is gone goes on elsewhere from the tokens that its client has."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from llumnix.engine.migration.resume import Resumer
from llumnix.errors import RefusedError
from tests.engine.migration.lab import Lab, Result, prompt, sampling
from tests.engine.migration.test_exact import KINDS, unmoved

NUM_DELIVERED = 6


def cut_off(lab: Lab, tokens: list[int], params: SamplingParams) -> tuple[EngineCoreRequest, Result]:
    """Run a request until its client has some tokens; what the API server keeps of it."""
    result = lab.submit("a", tokens, params)
    sent = msgspec.structs.replace(lab.port.source.identity("a").request, request_id="a-1")
    while len(result.tokens) < NUM_DELIVERED:
        lab.step()
    lab.reset()
    return sent, result


def resume(lab: Lab, sent: EngineCoreRequest, result: Result) -> None:
    resumer = Resumer(lab.engine, lab.port.target)
    resumer.resume(sent, result.tokens)
    lab.results[sent.request_id] = result
    while resumer.is_waiting:
        assert resumer.advance() == []
        time.sleep(0.001)  # its grammar is compiled in another thread
    lab.run(sent.request_id)


@pytest.mark.parametrize("kind", KINDS.keys() - {"prompt logprobs"})
def test_a_resumed_request_is_the_same_to_the_token(any_labs: tuple[Lab, Lab], kind: str) -> None:
    source, target = any_labs
    params, tokens = sampling(**KINDS[kind]), prompt(70, seed=len(kind))
    reference = unmoved(source, tokens, params)
    sent, result = cut_off(source, tokens, params)
    resume(target, sent, result)
    assert (result.tokens, result.finish) == (reference.tokens, reference.finish)
    assert result.logprob_ids == reference.logprob_ids
    target.reset()


def request(tokens: list[int], **parameters: Any) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id="b",
        prompt_token_ids=tokens,
        mm_features=None,
        sampling_params=sampling(**parameters),
        pooling_params=None,
        arrival_time=1.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def test_what_cannot_go_on_exactly_is_refused_and_leaves_nothing(labs: tuple[Lab, Lab]) -> None:
    lab = labs[0]
    resumer = Resumer(lab.engine, lab.port.target)
    with lab.in_chunks(), pytest.raises(RefusedError, match="in the middle of a prefill"):
        limit = lab.engine.vllm_config.scheduler_config.max_num_batched_tokens
        resumer.resume(request(prompt(limit), temperature=1.0, seed=1), [5, 6])
    pooling = msgspec.structs.replace(request(prompt(10)), sampling_params=None)
    with pytest.raises(RefusedError, match="pooling"):
        resumer.resume(pooling, [])
    assert not resumer.is_waiting
    assert lab.port.target.reservations() == []


def test_tokens_that_its_grammar_rejects_are_told_with_the_reason(labs: tuple[Lab, Lab]) -> None:
    """Told by `advance`, as its grammar is compiled in another thread: the client must have an answer."""
    lab = labs[0]
    params = sampling(**KINDS["json schema"])
    sent, _ = cut_off(lab, prompt(30), params)
    resumer = Resumer(lab.engine, lab.port.target)
    resumer.resume(sent, [5, 5, 5, 5])
    failed: list[tuple[str, int, str]] = []
    while resumer.is_waiting:
        failed += resumer.advance()
        time.sleep(0.001)
    assert failed == [("a-1", 0, "its grammar rejects a token that the source has sent")]
    assert lab.port.target.reservations() == []
    lab.reset()


def test_one_that_is_aborted_while_its_grammar_is_compiled_is_forgotten(labs: tuple[Lab, Lab]) -> None:
    lab = labs[0]
    sent, result = cut_off(lab, prompt(30), sampling(**KINDS["json schema"]))
    resumer = Resumer(lab.engine, lab.port.target)
    resumer.resume(sent, result.tokens)
    resumer.forget(["somebody else's"])
    assert resumer.is_waiting
    resumer.forget(["a-1"])
    assert not resumer.is_waiting
    assert resumer.advance() == []
    assert lab.port.target.reservations() == []
    lab.reset()
