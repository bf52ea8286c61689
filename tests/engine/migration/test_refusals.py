"""What cannot be moved exactly is refused, in words for an operator; nothing else is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from llumnix.engine.migration.grammar import progress
from llumnix.engine.migration.refusals import engine_refusal, request_refusal
from llumnix.engine.migration.state import FinalState, GrammarProgress, PrepareInfo, decode, encode
from llumnix.errors import RefusedError, UnknownTargetError
from tests.engine.migration.lab import CHUNK_TOKENS, Lab, json_schema, prompt, sampling
from tests.engine.migration.move import Move
from tests.engine.migration.test_exact import KINDS


def running(lab: Lab, **parameters: Any) -> Any:
    lab.submit("a", prompt(40), sampling(**parameters))
    lab.step()
    lab.step()
    return lab.request("a")


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_requests_are_not_refused(labs: tuple[Lab, Lab], kind: str) -> None:
    running(labs[0], **KINDS[kind])
    assert labs[0].port.source.refusal("a") is None


def test_finished_and_unknown_requests(labs: tuple[Lab, Lab]) -> None:
    source = labs[0].port.source
    running(labs[0])
    labs[0].run("a")
    assert source.refusal("a") == source.refusal("never") == "it is finished"
    assert source.progress("a") is None
    assert not source.is_quiet("a")
    source.unfreeze("a")
    for call in (source.identity, source.copyable_blocks, source.freeze, source.final_state):
        with pytest.raises(UnknownTargetError, match="finished or was never here"):
            call("a")
    with pytest.raises(RefusedError, match="is not frozen"):
        source.release("a")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pooling_params": object()}, "pooling request"),
        ({"resumable": True}, "stream that may go on"),
        ({"prompt_embeds": object()}, "embeddings instead of tokens"),
        ({"prompt_token_ids": None}, "embeddings instead of tokens"),
        (
            {"mm_features": [SimpleNamespace(mm_position=SimpleNamespace(offset=30, length=20))]},
            "multimodal input is not encoded yet",
        ),
    ],
)
def test_requests_of_other_kinds(labs: tuple[Lab, Lab], change: dict[str, Any], reason: str) -> None:
    request = running(labs[0])
    usual = {name: getattr(request, name) for name in change}
    for name, value in change.items():
        setattr(request, name, value)
    try:
        assert reason in str(labs[0].port.source.refusal("a"))
        with pytest.raises(RefusedError, match=reason):
            labs[0].port.source.identity("a")
    finally:
        for name, value in usual.items():
            setattr(request, name, value)


def test_multimodal_input_that_is_encoded_does_not_stand_in_the_way(labs: tuple[Lab, Lab]) -> None:
    request = running(labs[0])
    request.mm_features = [SimpleNamespace(mm_position=SimpleNamespace(offset=10, length=20))]
    assert labs[0].port.source.refusal("a") is None
    request.mm_features = []


def engine_with(lab: Lab, config: dict[str, Any], scheduler: dict[str, Any]) -> Any:
    """The lab's engine, but for what is given; dotted names reach into the configuration."""
    real = lab.engine
    changed = SimpleNamespace(
        speculative_config=None,
        model_config=SimpleNamespace(runner_type="generate", is_diffusion=False, uses_mrope=False),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1),
        device_config=SimpleNamespace(device_type="cpu"),
        use_v2_model_runner=False,
        lora_config=None,
    )
    for name, value in config.items():
        *path, last = name.split(".")
        owner: Any = changed
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, value)
    names = ("kv_cache_config", "is_encoder_decoder", "has_mamba_layers", "connector", "ec_connector")
    parts = {name: getattr(real.scheduler, name) for name in (*names, "aux_output_connector")}
    return SimpleNamespace(
        vllm_config=changed,
        scheduler=SimpleNamespace(**parts | scheduler),
        structured_output_manager=real.structured_output_manager,
    )


TWO_GROUPS = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=None)] * 2)
OTHER_SPEC = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=object())])


@pytest.mark.parametrize(
    ("config", "scheduler", "reason"),
    [
        ({"model_config.runner_type": "pooling"}, {}, "pooling models"),
        ({"model_config.is_diffusion": True}, {}, "diffusion"),
        ({"speculative_config": object()}, {}, "speculative decoding"),
        ({"parallel_config.decode_context_parallel_size": 2}, {}, "context parallelism"),
        ({"watermark_config": object()}, {}, "watermarked"),
        ({}, {"is_encoder_decoder": True}, "encoder-decoder"),
        ({}, {"has_mamba_layers": True}, "Mamba"),
        ({}, {"kv_cache_config": TWO_GROUPS}, "2 kinds of KV cache"),
        ({}, {"kv_cache_config": OTHER_SPEC}, "not full attention's"),
        ({}, {"connector": object()}, "connector"),
        ({}, {"aux_output_connector": object()}, "auxiliary outputs"),
    ],
)
def test_engines_that_move_nothing(
    labs: tuple[Lab, Lab], config: dict[str, Any], scheduler: dict[str, Any], reason: str
) -> None:
    assert engine_refusal(engine_with(labs[0], {}, {})) is None
    assert reason in str(engine_refusal(engine_with(labs[0], config, scheduler)))


@pytest.mark.parametrize(
    ("runs_v2", "parameters", "reason"),
    [
        (False, {"seed": 3, "temperature": 1.0}, None),
        (False, {"prompt_logprobs": 1}, None),
        (True, {"prompt_logprobs": 1}, "prompt logprobs are not finished"),
        (True, {}, None),
        (False, {"thinking_token_budget": 9}, "thinking budget"),
        (True, {"thinking_token_budget": 9}, None),
    ],
)
def test_what_depends_on_the_model_runner_in_the_middle_of_a_prefill(
    labs: tuple[Lab, Lab], runs_v2: bool, parameters: dict[str, Any], reason: str | None
) -> None:
    lab = labs[0]
    lab.submit("a", prompt(CHUNK_TOKENS + 90), sampling())
    with lab.in_chunks():
        lab.step()
    request = lab.request("a")
    request.sampling_params = sampling(**parameters)
    engine = engine_with(lab, {"use_v2_model_runner": runs_v2}, {})
    refusal = request_refusal(engine, lab.port.source._access, request)
    assert refusal == reason if reason is None else reason in str(refusal)


def test_a_grammar_behind_a_reasoning_parser(labs: tuple[Lab, Lab]) -> None:
    """Only what came after the reasoning was fed to the grammar."""
    lab = labs[0]
    lab.submit("a", prompt(40), sampling(structured_outputs=json_schema(), max_tokens=40))
    while lab.request("a").num_output_tokens < 5:
        lab.step()
    request, structured = lab.request("a"), lab.request("a").structured_output_request
    parser: Any = SimpleNamespace(reasoner_cls=object, enable_in_reasoning=False)
    assert progress(parser, request) == GrammarProgress(True, structured.grammar.num_processed_tokens)
    structured.grammar.num_processed_tokens = 3  # as if the first two had been reasoning
    assert progress(parser, request) == GrammarProgress(True, 3)
    structured.reasoning_ended = False
    assert progress(parser, request) == GrammarProgress(False, 0)
    structured.reasoning_ended = True
    xgrammar, structured.grammar = structured.grammar, object()
    with pytest.raises(RefusedError, match="cannot be told"):
        progress(parser, request)
    structured.grammar = xgrammar
    structured.grammar.num_processed_tokens = 5


def test_a_grammar_that_cannot_be_compiled(labs: tuple[Lab, Lab]) -> None:
    lab = labs[0]
    request = running(lab, structured_outputs=json_schema())
    request.structured_output_request.grammar = ValueError("no such type")
    request.status = type(request.status).WAITING
    assert lab.port.source.refusal("a") == "its grammar cannot be compiled: no such type"
    request.status = type(request.status).WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR


def test_a_target_checks_what_it_is_told(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    running(source)
    move = Move(source, target, "a", "a-1")
    move.prepare()
    assert move.reservation is not None
    with pytest.raises(RefusedError, match="already has a request a-1"):
        target.port.target.reserve(move.info, "a-1")
    wrong_hash = msgspec.structs.replace(move.info, last_block_hash=b"other seed")
    with pytest.raises(RefusedError, match="hash blocks differently"):
        target.port.target.reserve(wrong_hash, "a-2")
    assert move.freeze()
    final = source.port.source.final_state("a", first_output=1)
    for change, reason in (
        ({"first_output": 5}, "are missing"),
        ({"num_computed_tokens": 900}, "too few blocks"),
        ({"num_preemptions": 1}, "preempted while it was being moved"),
        ({"workers": []}, "workers' states are missing"),
        ({"first_output": 0, "output_token_ids": [1, 2, 3]}, "disagree on the output"),
    ):
        with pytest.raises(RefusedError, match=reason):
            target.port.target.adopt(move.reservation, msgspec.structs.replace(final, **change))
    assert target.port.check_integrity() == []
    move.abort()
    assert target.port.check_integrity() == []
    source.run("a")


def test_a_target_without_a_free_run_slot_refuses(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    limit = target.engine.scheduler.max_num_active_reqs
    for n in range(limit - 1):
        target.submit(f"r{n}", prompt(20, seed=n), sampling(max_tokens=50))
    target.step()
    running(source)
    source.submit("b", prompt(20), sampling())
    source.step()
    move = Move(source, target, "a", "a-1")
    move.prepare()
    with pytest.raises(RefusedError, match="no free run slot"):
        Move(source, target, "b", "b-1").prepare()
    move.abort()
    Move(source, target, "b", "b-1").run()
    target.run()


def test_a_run_slot_that_is_taken_meanwhile_is_found_missing_before_the_source_lets_go(
    labs: tuple[Lab, Lab],
) -> None:
    source, target = labs
    limit = target.engine.scheduler.max_num_active_reqs
    for n in range(limit - 1):
        target.submit(f"r{n}", prompt(20, seed=n), sampling(max_tokens=50))
    target.step()
    running(source)
    move = Move(source, target, "a", "a-1")
    move.prepare()
    target.submit("late", prompt(20, seed=99), sampling(max_tokens=50))
    target.step()
    assert move.freeze()
    final = source.port.source.final_state("a")
    with pytest.raises(RefusedError, match="no free run slot any more"):
        target.port.target.adopt(move.reservation, final)
    assert target.port.check_integrity() == []
    move.abort()
    source.run("a")
    target.run()


def test_a_failing_worker_leaves_the_reservation_and_the_source_as_they_were(
    labs: tuple[Lab, Lab],
) -> None:
    source, target = labs
    running(source)
    move = Move(source, target, "a", "a-1")
    move.prepare()
    assert move.freeze()
    final = source.port.source.final_state("a")
    broken = msgspec.structs.replace(final, workers=[b"\xc1"])
    with pytest.raises(msgspec.DecodeError):
        target.port.target.adopt(move.reservation, broken)  # type: ignore[arg-type]
    assert "a-1" not in target.engine.scheduler.requests
    move.abort()
    source.run("a")
    assert target.port.check_integrity() == []


def test_states_travel_as_msgpack_and_nothing_else(labs: tuple[Lab, Lab]) -> None:
    source, _ = labs
    running(source, seed=4, temperature=1.0, structured_outputs=json_schema(), bad_words=["e"])
    info = source.port.source.identity("a")
    again = decode(encode(info), PrepareInfo)
    assert again.request.sampling_params == info.request.sampling_params
    assert again.output_token_ids == info.output_token_ids
    source.port.source.freeze("a")
    final = source.port.source.final_state("a")
    assert decode(encode(final), FinalState) == final
    source.port.source.unfreeze("a")
    with pytest.raises(msgspec.ValidationError):
        decode([msgspec.msgpack.encode({"request": 1})], PrepareInfo)
    with pytest.raises(TypeError, match="not serializable"):
        encode(msgspec.structs.replace(final, workers=[object()]))
