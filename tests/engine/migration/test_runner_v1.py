"""What model runner V1 is given, on a stand-in for it: no engine is built."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.migration.lab import sampling as sampling  # first: sets what vLLM reads when it is imported

from llumnix.engine.migration import runner_v1  # isort: skip
from llumnix.engine.migration.import_order import ImportOrder  # isort: skip
from llumnix.engine.migration.state import WorkerState  # isort: skip
from vllm.platforms import current_platform  # isort: skip
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler  # isort: skip

VOCABULARY = 64


def runner(**more: Any) -> Any:
    parts = {
        "device": torch.device("cpu"),
        "model_config": SimpleNamespace(get_vocab_size=lambda: VOCABULARY),
        "num_prompt_logprobs": {},
        "requests": {},
        "uses_mrope": False,
    }
    return SimpleNamespace(**parts | more)


def order() -> ImportOrder:
    return ImportOrder("a", [5, 6, 7], [8, 9], 0, [], sampling(), None)


def test_a_model_with_multimodal_rotary_positions_has_them_for_an_imported_request() -> None:
    def init(request: Any) -> None:
        request.mrope_positions = torch.arange(len(request.prompt_token_ids)).expand(3, -1)
        request.mrope_position_delta = 0

    target = runner(uses_mrope=True, _init_mrope_positions=init)
    runner_v1.import_request(target, order(), WorkerState())
    assert target.requests["a"].mrope_positions.shape == (3, 3)


def test_a_request_whose_positions_cannot_be_told_is_not_left_behind() -> None:
    def fail(_: Any) -> None:
        raise ValueError("no positions")

    target = runner(uses_mrope=True, _init_mrope_positions=fail)
    with pytest.raises(ValueError, match="no positions"):
        runner_v1.import_request(target, order(), WorkerState())
    assert target.requests == {}


@pytest.mark.skipif(not current_platform.is_cpu(), reason="the kernel is of vLLM for CPUs")
@pytest.mark.parametrize("use_fp64_gumbel", [False, True])
@pytest.mark.parametrize("forward", ["forward_cpu", "forward_native"])
def test_a_replayed_generator_is_where_sampling_left_it(forward: str, use_fp64_gumbel: bool) -> None:
    current_platform.import_kernels()
    sampler: Any = TopKTopPSampler(use_fp64_gumbel=use_fp64_gumbel)
    sampler.forward = getattr(sampler, forward)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        sampler.forward(torch.zeros(1, VOCABULARY), {0: generator}, None, None)
    target = runner(sampler=SimpleNamespace(topk_topp_sampler=sampler))
    assert runner_v1.replayed_state(target, 3, 5).generator == generator.get_state().numpy().tobytes()
    assert runner_v1.replayed_state(target, None, 5).generator is None


def test_only_rows_whose_token_is_kept_draw_from_their_generators() -> None:
    first, second = torch.Generator(), torch.Generator()
    mask = SimpleNamespace(np=np.array([True, True, False, True]))
    batch = SimpleNamespace(num_reqs=3, generators={0: first, 2: second})
    target = runner(input_batch=batch, discard_request_mask=mask)
    with pytest.raises(RuntimeError), runner_v1.undrawn(target):
        assert batch.generators == {2: second}
        raise RuntimeError
    assert batch.generators == {0: first, 2: second}
