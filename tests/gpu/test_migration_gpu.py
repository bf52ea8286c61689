"""Requests move between two vLLM engines on one GPU, with either model runner; needs an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llumnix.engine import tiny_model
from tests.engine.migration.lab import CHUNK_TOKENS, Lab, prompt, sampling
from tests.engine.migration.move import Move, there_and_back
from tests.engine.migration.test_exact import KINDS, check_same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

KV_BYTES = 256 << 20


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["0", "1"], ids=["runner V1", "runner V2"])
def gpu_labs(request: pytest.FixtureRequest, model_dir: Path) -> Iterator[tuple[Lab, Lab]]:
    """Two engines in this process; asynchronous scheduling, as is usual on GPU."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_USE_V2_MODEL_RUNNER", request.param)
        environment.setenv("VLLM_USE_FLASHINFER_SAMPLER", "0")
        # float32: in bfloat16 the shape of a batch can decide between two tokens.
        arguments: dict[str, Any] = {"attention_backend": "TRITON_ATTN", "kv_cache_memory_bytes": KV_BYTES}
        yield Lab(model_dir, **arguments), Lab(model_dir, **arguments)


@pytest.fixture
def labs(gpu_labs: tuple[Lab, Lab]) -> tuple[Lab, Lab]:
    for lab in gpu_labs:
        lab.reset()
    return gpu_labs


def unmoved(lab: Lab, tokens: list[int], params: Any) -> Any:
    result = lab.submit("unmoved", tokens, params)
    lab.run("unmoved")
    lab.reset()
    return result


def test_the_runner_and_the_scheduler_are_the_ones_meant(labs: tuple[Lab, Lab]) -> None:
    mine = labs[0].port.fingerprint()
    assert mine.device == "cuda"
    assert mine.model_runner == ("v2" if labs[0].engine.vllm_config.use_v2_model_runner else "v1")
    assert mine.difference(labs[1].port.fingerprint()) is None
    assert labs[0].engine.batch_queue is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_request_is_the_same_to_the_token(labs: tuple[Lab, Lab], kind: str) -> None:
    source, target = labs
    params, tokens = sampling(**KINDS[kind]), prompt(70, seed=len(kind))
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params)
    while len(result.tokens) < 6:
        source.step()
    assert Move(source, target, "a", "a-1").run()
    target.run("a-1")
    check_same(result, reference)
    for lab in labs:
        lab.idle()
        assert lab.port.check_integrity() == []


@pytest.mark.parametrize("parameters", [{}, {"temperature": 1.0, "seed": 7}, {"presence_penalty": 1.0}])
def test_there_and_back(labs: tuple[Lab, Lab], parameters: dict[str, Any]) -> None:
    source, target = labs
    params, tokens = sampling(max_tokens=40, **parameters), prompt(50)
    reference = unmoved(source, tokens, params)
    result, num_hops = there_and_back(source, target, tokens, params)
    assert num_hops >= 3
    check_same(result, reference)


def test_moved_in_the_middle_of_a_prefill_with_a_seed(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    params, tokens = sampling(temperature=1.0, seed=9), prompt(2 * CHUNK_TOKENS + 90)
    reference = unmoved(source, tokens, params)
    result = source.submit("a", tokens, params)
    with source.in_chunks():
        source.step()
        assert Move(source, target, "a", "a-1").run(num_stages=0)
    assert 0 < target.request("a-1").num_computed_tokens < len(tokens)
    target.run("a-1")
    assert result.tokens == reference.tokens


def test_an_unseeded_request_keeps_the_seed_that_runner_v2_drew(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    if not source.engine.vllm_config.use_v2_model_runner:
        pytest.skip("model runner V1 draws from the device's generator")
    source.submit("a", prompt(60), sampling(temperature=1.0))
    for _ in range(4):
        source.step()
    runner = source.engine.model_executor.driver_worker.worker.model_runner
    drawn = int(runner.sampler.sampling_states.seeds.np[runner.req_states.req_id_to_index["a"]])
    assert Move(source, target, "a", "a-1").run()
    assert target.request("a-1").sampling_params.seed == drawn
    target.run("a-1")


def test_frozen_requests_keep_their_slots_in_the_runner(labs: tuple[Lab, Lab]) -> None:
    """Runner V2 has as many slots as requests may run: none may be given away while one is frozen."""
    source, _ = labs
    limit = source.engine.scheduler.max_num_running_reqs
    for n in range(limit + 2):
        source.submit(f"r{n}", prompt(20, seed=n), sampling(max_tokens=40), arrival_time=float(n))
    for _ in range(6):
        source.step()
    source.port.source.freeze("r0")
    for _ in range(10):
        source.step()
    source.port.source.unfreeze("r0")
    source.run()
