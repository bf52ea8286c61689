"""Engines without a model for the virtual clock; those of one simulation share vLLM's configuration."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import get_request_block_hasher
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore

from llumnix.engine.simulated.arguments import PROFILE_KEY, default_arguments
from llumnix.engine.simulated.executor import VirtualTimeExecutor
from llumnix.profiles import HardwareProfile

# Only what vLLM wants to see of a model before it builds a scheduler; nothing of this size is ever made.
_HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 1024,
    "torch_dtype": "float16",
}


class EngineBuilder:
    """Builds vLLM engines with vLLM's own scheduler for one hardware profile."""

    def __init__(self, profile: HardwareProfile, profile_name: str, *, prefix_caching: bool) -> None:
        """`profile_name` is what find_profile takes."""
        self._config = _vllm_config(profile, profile_name, prefix_caching)

    def build(self) -> EngineCore:
        """An engine that runs nothing yet; 2 ms."""
        engine = EngineCore(self._config, VirtualTimeExecutor, log_stats=False)
        if engine.request_block_hasher is not None:
            engine.request_block_hasher = get_request_block_hasher(engine.scheduler.block_size, _quick_hash)
        return engine


def _quick_hash(value: Any) -> bytes:
    """Ten times quicker than sha256_cbor; nothing depends on hashes but which blocks are the same."""
    return hash(value).to_bytes(8, "little", signed=True)


def _vllm_config(profile: HardwareProfile, profile_name: str, prefix_caching: bool) -> VllmConfig:
    """vLLM's defaults but for the size of the machine, and priorities as llumnix has them."""
    max_model_len = profile.num_blocks * profile.block_size
    with tempfile.TemporaryDirectory(prefix="llumnix-sim-") as directory:
        description = _HF_CONFIG | {"max_position_embeddings": max_model_len}
        Path(directory, "config.json").write_text(json.dumps(description), encoding="utf-8")
        args = AsyncEngineArgs(
            model=directory,
            skip_tokenizer_init=True,
            max_model_len=max_model_len,
            enable_prefix_caching=prefix_caching,
            prefix_caching_hash_algo="sha256_cbor",
            scheduling_policy="priority",
            additional_config={PROFILE_KEY: profile_name},
            **default_arguments(profile_name),
        )
        return args.create_engine_config()


def request_of(
    request_id: str,
    prompt_token_ids: list[int],
    output_tokens: int,
    arrival_s: float,
    *,
    priority: int = 0,
    api_server: int = 0,
) -> EngineCoreRequest:
    """A request as an API server sends it, that makes exactly so many tokens."""
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=prompt_token_ids,
        mm_features=None,
        sampling_params=SamplingParams(
            temperature=0.0, max_tokens=output_tokens, ignore_eos=True, detokenize=False
        ),
        pooling_params=None,
        arrival_time=arrival_s,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        client_index=api_server,
        priority=priority,
    )
