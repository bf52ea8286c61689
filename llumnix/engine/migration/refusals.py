"""What cannot be moved exactly, and why, in words for an operator. What is not refused here moves exactly."""

from __future__ import annotations

from typing import Any

from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.request import Request, RequestStatus

from llumnix.engine.migration import grammar
from llumnix.engine.migration.scheduler_access import SchedulerAccess
from llumnix.errors import RefusedError


def engine_refusal(engine: Any) -> str | None:
    """Why no request of this engine can be moved; None if requests can."""
    config, scheduler = engine.vllm_config, engine.scheduler
    groups = scheduler.kv_cache_config.kv_cache_groups
    parallel = config.parallel_config
    checks = (
        (config.model_config.runner_type == "pooling", "pooling models are not moved"),
        (scheduler.is_encoder_decoder, "encoder-decoder models are not moved"),
        (config.model_config.is_diffusion, "diffusion models are not moved"),
        (scheduler.has_mamba_layers, "state-space (Mamba) and hybrid models are not moved"),
        (
            len(groups) != 1,
            f"models with {len(groups)} kinds of KV cache are not moved: one kind of full attention is",
        ),
        (
            any(not isinstance(group.kv_cache_spec, FullAttentionSpec) for group in groups),
            "models whose KV cache is not full attention's are not moved",
        ),
        (config.speculative_config is not None, "requests under speculative decoding are not moved"),
        (
            scheduler.connector is not None or scheduler.ec_connector is not None,
            "requests under a vLLM KV or encoder connector are not moved",
        ),
        (scheduler.aux_output_connector is not None, "requests with auxiliary outputs are not moved"),
        (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1,
            "requests under context parallelism are not moved",
        ),
        (getattr(config, "watermark_config", None) is not None, "watermarked sampling is not moved"),
    )
    return next((reason for applies, reason in checks if applies), None)


def request_refusal(engine: Any, access: SchedulerAccess, request: Request) -> str | None:
    """Why this request cannot be moved now; None if it can."""
    return (
        engine_refusal(engine)
        or _input_refusal(engine, request)
        or _progress_refusal(engine, access, request)
        or _grammar_refusal(engine, request)
    )


def _input_refusal(engine: Any, request: Request) -> str | None:
    """By what the request is."""
    sampling = request.sampling_params
    if request.pooling_params is not None or sampling is None:
        return "it is a pooling request"
    if request.resumable or request.streaming_queue is not None:
        return "its input is a stream that may go on"
    if request.prompt_embeds is not None or request.prompt_token_ids is None:
        return "its prompt holds embeddings instead of tokens"
    if request.mm_features and engine.vllm_config.model_config.uses_mrope:
        return "it has multimodal input for a model with multimodal rotary positions"
    if sampling.trace_decode_token_ids is not None:
        return "it replays a trace of tokens"
    if sampling.thinking_token_budget is not None and not engine.vllm_config.use_v2_model_runner:
        return "model runner V1 keeps a thinking budget's count where it cannot be carried over"
    return None


def _progress_refusal(engine: Any, access: SchedulerAccess, request: Request) -> str | None:
    """By how far it has come."""
    if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
        return "its KV cache is just being loaded"
    sampling = request.sampling_params
    settled = request.num_computed_tokens
    if any(f.mm_position.offset + f.mm_position.length > settled for f in request.mm_features):
        return "its multimodal input is not encoded yet"
    in_prefill = 0 < settled < request.num_prompt_tokens and request.num_output_tokens == 0
    if not in_prefill:
        return None
    runs_v2 = engine.vllm_config.use_v2_model_runner
    wants_logprobs = sampling.prompt_logprobs is not None or sampling.prompt_logprob_token_ids is not None
    if wants_logprobs and runs_v2:
        return "its prompt logprobs are not finished, and model runner V2 cannot take over a part of them"
    if sampling.prompt_logprob_token_ids is not None:
        return "its prompt token scores are not finished"
    return None


def _grammar_refusal(engine: Any, request: Request) -> str | None:
    try:
        if request.status != RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            grammar.is_ready(request)
        grammar.progress(engine.structured_output_manager, request)
    except RefusedError as error:
        return str(error)
    return None
