"""A request's state in model runner V1 (vllm.v1.worker.gpu_model_runner), with its private names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from llumnix.engine.migration.import_order import ImportOrder
from llumnix.engine.migration.state import PackedTensor, PromptLogprobs, WorkerState


def export_request(runner: Any, request_id: str) -> WorkerState:
    """What cannot be rebuilt from the request's tokens and parameters."""
    cached: CachedRequestState = runner.requests[request_id]
    generator = cached.generator
    logprobs = cached.in_progress_prompt_logprobs_cpu
    return WorkerState(
        generator=None if generator is None else generator.get_state().numpy().tobytes(),
        awaits_prompt_logprobs=request_id in runner.num_prompt_logprobs,
        prompt_logprobs=None if logprobs is None else _pack_logprobs(logprobs),
    )


def import_request(runner: Any, order: ImportOrder, state: WorkerState) -> None:
    """Leave the request as a preempted one: the runner takes its blocks from the step that resumes it."""
    if order.request_id in runner.requests:
        raise ValueError(f"the model runner already knows request {order.request_id}")
    request = CachedRequestState(
        req_id=order.request_id,
        prompt_token_ids=order.prompt_token_ids,
        mm_features=order.mm_features,
        sampling_params=order.sampling_params,
        generator=None if state.generator is None else _generator(runner.device, state.generator),
        block_ids=([],),
        num_computed_tokens=order.num_computed_tokens,
        output_token_ids=list(order.output_token_ids),
        lora_request=order.lora_request,
        in_progress_prompt_logprobs_cpu=_logprobs(state.prompt_logprobs),
    )
    if runner.uses_mrope:  # a function of the prompt, which every step asks for
        runner._init_mrope_positions(request)
    runner.requests[order.request_id] = request
    if state.awaits_prompt_logprobs:
        wanted = order.sampling_params.prompt_logprobs
        runner.num_prompt_logprobs[order.request_id] = (
            runner.input_batch.vocab_size if wanted == -1 else wanted
        )


def forget_request(runner: Any, request_id: str) -> None:
    """Drop what import_request left."""
    runner.requests.pop(request_id, None)
    runner.num_prompt_logprobs.pop(request_id, None)


def replayed_state(runner: Any, seed: int | None, num_tokens: int) -> WorkerState:
    """The state of a request's generator after it has drawn `num_tokens` tokens here, one at a time.

    Draws what TopKTopPSampler draws per token: a number on most CPUs, else a row of noise, a vocabulary wide.
    """
    if seed is None:
        return WorkerState()
    generator = torch.Generator(device=runner.device)
    generator.manual_seed(seed)
    sampler = runner.sampler.topk_topp_sampler
    if sampler.forward.__name__ == "forward_cpu" and not sampler.use_fp64_gumbel:
        for _ in range(num_tokens):
            torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)
    else:
        dtype = torch.float64 if sampler.use_fp64_gumbel else torch.float32
        row = torch.empty(runner.model_config.get_vocab_size(), dtype=dtype, device=runner.device)
        for _ in range(num_tokens):
            row.exponential_(generator=generator)
    return WorkerState(generator=generator.get_state().numpy().tobytes())


@contextmanager
def undrawn(runner: Any) -> Iterator[None]:
    """Around the sampling of a step: a request in the middle of its prefill draws nothing from its generator.

    vLLM samples a token for it and throws it away, and sets the generator back by its offset, which one of a
    CPU does not have: stock vLLM raises. Without a generator the row takes its noise from the batch's.
    """
    batch = runner.input_batch
    discarded = np.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0].tolist()
    kept = {row: batch.generators.pop(row) for row in discarded if row in batch.generators}
    try:
        yield
    finally:
        batch.generators.update(kept)


def _generator(device: torch.device, state: bytes) -> torch.Generator:
    generator = torch.Generator(device=device)
    generator.set_state(torch.from_numpy(np.frombuffer(state, dtype=np.uint8).copy()))
    return generator


def _pack_logprobs(logprobs: LogprobsTensors) -> PromptLogprobs:
    return PromptLogprobs(
        _pack(logprobs.logprob_token_ids), _pack(logprobs.logprobs), _pack(logprobs.selected_token_ranks)
    )


def _logprobs(packed: PromptLogprobs | None) -> LogprobsTensors | None:
    if packed is None:
        return None
    return LogprobsTensors(_unpack(packed.token_ids), _unpack(packed.logprobs), _unpack(packed.ranks))


def _pack(tensor: torch.Tensor) -> PackedTensor:
    array = tensor.contiguous().numpy()
    return PackedTensor(array.dtype.str, list(array.shape), array.tobytes())


def _unpack(packed: PackedTensor) -> torch.Tensor:
    array = np.frombuffer(packed.data, dtype=np.dtype(packed.dtype)).reshape(packed.shape)
    return torch.from_numpy(array.copy())
