"""A request whose instance is gone goes on elsewhere from the tokens that its client has."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreRequest

from llumnix.engine.migration.adopt import GRAMMAR_TOKENS_PER_CALL
from llumnix.engine.migration.resume import Resumer
from llumnix.engine.scheduler_view import MovesUnderWay, SchedulerView
from llumnix.errors import RefusedError
from tests.engine.migration.lab import CHUNK_TOKENS, Lab, Result, prompt, sampling
from tests.engine.migration.test_exact import KINDS, unmoved

NUM_DELIVERED = 6


def cut_off(
    lab: Lab, tokens: list[int], params: SamplingParams, num_delivered: int = NUM_DELIVERED
) -> tuple[EngineCoreRequest, Result]:
    """Run a request until its client has some tokens; what the API server keeps of it."""
    result = lab.submit("a", tokens, params)
    sent = msgspec.structs.replace(lab.port.source.identity("a").request, request_id="a-1")
    while len(result.tokens) < num_delivered:
        lab.step()
    lab.reset()
    return sent, result


@dataclass
class Turns:
    """The engine thread of a resumer: makes the calls that it is asked for."""

    failed: list[tuple[str, int, str]] = field(default_factory=list)
    asked: queue.Queue[Callable[[], object]] = field(default_factory=queue.Queue)

    def resumer(self, engine: Any, target: Any) -> Resumer:
        return Resumer(engine, target, self.asked.put, self._fail)

    def _fail(self, request_id: str, api_server: int, reason: str) -> None:
        self.failed.append((request_id, api_server, reason))

    def take(self, resumer: Resumer) -> None:
        """Until nothing is to be resumed: its grammar is compiled in another thread."""
        while resumer.is_waiting:
            self.asked.get(timeout=60)()


def resume(lab: Lab, sent: EngineCoreRequest, result: Result) -> None:
    turns = Turns()
    resumer = turns.resumer(lab.engine, lab.port.target)
    resumer.resume(sent, result.tokens)
    lab.results[sent.request_id] = result
    turns.take(resumer)
    assert turns.failed == []
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
    resumer = Turns().resumer(lab.engine, lab.port.target)
    pooling = msgspec.structs.replace(request(prompt(10)), sampling_params=None)
    with pytest.raises(RefusedError, match="pooling"):
        resumer.resume(pooling, [])
    assert not resumer.is_waiting
    assert lab.port.target.reservations() == []


def test_what_a_seed_has_drawn_under_speculative_decoding_is_not_guessed() -> None:
    config = SimpleNamespace(speculative_config=object(), use_v2_model_runner=False)
    resumer = Turns().resumer(SimpleNamespace(vllm_config=config), None)
    with pytest.raises(RefusedError, match="drawn under speculative decoding"):
        resumer.resume(request(prompt(10), temperature=1.0, seed=1), [5, 6])


@pytest.mark.parametrize("num_delivered", [NUM_DELIVERED, 0])
def test_a_seeded_prompt_in_chunks_goes_on_as_in_a_single_step(
    any_labs: tuple[Lab, Lab], num_delivered: int
) -> None:
    """As many resumed at once share a step's tokens; stock vLLM on CPU would end here."""
    source, target = any_labs
    params, tokens = sampling(temperature=1.0, seed=3), prompt(2 * CHUNK_TOKENS + 40)
    reference = unmoved(source, tokens, params)
    sent, result = cut_off(source, tokens, params, num_delivered)
    with target.in_chunks():
        resume(target, sent, result)
    assert (result.tokens, result.finish) == (reference.tokens, reference.finish)
    target.reset()


class Reasoner:
    """Stands in for a reasoning parser whose end depends on all tokens so far."""

    def __init__(self, tokenizer: Any) -> None:
        """Needs none."""

    def is_reasoning_end(self, token_ids: Sequence[int]) -> bool:
        return len(token_ids) >= 30 + 5

    def is_reasoning_end_streaming(self, token_ids: Sequence[int], _: Sequence[int]) -> bool:
        return self.is_reasoning_end(token_ids)


@pytest.mark.parametrize("num_delivered", [2, 4, 5, 6, 12])
def test_a_grammar_behind_a_reasoning_parser_goes_on_where_it_was(
    any_labs: tuple[Lab, Lab], num_delivered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lab in any_labs:
        monkeypatch.setattr(lab.engine.structured_output_manager, "reasoner_cls", Reasoner)
    source, target = any_labs
    params, tokens = sampling(**KINDS["json schema"]), prompt(30)
    reference = source.submit("unmoved", tokens, params)
    source.run("unmoved")
    sent, result = cut_off(source, tokens, params, num_delivered)
    resume(target, sent, result)
    assert (result.tokens, result.finish) == (reference.tokens, reference.finish)
    target.reset()


def test_on_an_idle_engine_a_long_output_catches_up_without_waiting_for_a_step(labs: tuple[Lab, Lab]) -> None:
    """Turn by turn, so that what else comes in is not kept waiting."""
    lab = labs[0]
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 400}
    params = sampling(structured_outputs=StructuredOutputsParams(json=schema), max_tokens=800)
    num_delivered = 2 * GRAMMAR_TOKENS_PER_CALL + 1
    sent, result = cut_off(lab, prompt(30), params, num_delivered)
    turns = Turns()
    resumer = turns.resumer(lab.engine, lab.port.target)
    resumer.resume(sent, result.tokens)
    num_turns = 0
    while resumer.is_waiting:
        turns.asked.get(timeout=60)()
        num_turns += 1
    assert num_turns >= 2 and turns.failed == []
    assert lab.request("a-1").num_output_tokens == num_delivered
    lab.results["a-1"] = result
    lab.reset()


def test_tokens_that_its_grammar_rejects_are_told_with_the_reason(labs: tuple[Lab, Lab]) -> None:
    """Told later, as its grammar is compiled in another thread: the client must have an answer."""
    lab = labs[0]
    params = sampling(**KINDS["json schema"])
    sent, _ = cut_off(lab, prompt(30), params)
    turns = Turns()
    resumer = turns.resumer(lab.engine, lab.port.target)
    resumer.resume(sent, [5, 5, 5, 5])
    turns.take(resumer)
    assert turns.failed == [("a-1", 0, "its grammar rejects a token that the source has sent")]
    assert lab.port.target.reservations() == []
    lab.reset()


def test_one_that_is_aborted_while_its_grammar_is_compiled_is_forgotten(labs: tuple[Lab, Lab]) -> None:
    lab = labs[0]
    sent, result = cut_off(lab, prompt(30), sampling(**KINDS["json schema"]))
    turns = Turns()
    resumer = turns.resumer(lab.engine, lab.port.target)
    compiler = lab.engine.structured_output_manager.executor
    for _ in range(compiler._max_workers):
        compiler.submit(time.sleep, 0.2)
    resumer.resume(sent, result.tokens)
    resumer.forget(["somebody else's"])
    assert resumer.is_waiting
    resumer.forget(["a-1"])
    assert not resumer.is_waiting
    turns.asked.get(timeout=60)()
    assert turns.failed == []
    assert lab.port.target.reservations() == []
    lab.reset()


def test_what_waits_for_its_grammar_counts_as_waiting(
    labs: tuple[Lab, Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = labs
    # However soon its grammar is compiled.
    monkeypatch.setattr(target.port.target, "is_ready", lambda reservation: False)
    sent, result = cut_off(source, prompt(20), sampling(**KINDS["json schema"]))
    resumer = Turns().resumer(target.engine, target.port.target)
    view = SchedulerView(target.engine.scheduler, resumer.requests)
    resumer.resume(sent, result.tokens)
    report = view.load(1, 0.0, 0.0, {}, MovesUnderWay())
    assert (report.running, report.waiting) == (0, 1)
    assert [row.request_id for row in view.rows()] == [sent.request_id]
    resumer.forget([sent.request_id])
    assert view.load(1, 0.0, 0.0, {}, MovesUnderWay()).waiting == 0
