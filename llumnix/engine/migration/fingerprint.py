"""What two instances must have in common for a request to run on in the other, to the bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
from vllm.v1.core import kv_cache_utils
from vllm.version import __version__ as vllm_version

from llumnix.engine.migration.state import WorkerDescription

_END_BYTES = 1 << 16


class Fingerprint(msgspec.Struct, frozen=True):
    """Compared before anything is sent; every field must be equal."""

    vllm_version: str
    device: str
    lora: str
    model: str
    """Hash of the model's configuration and, where it is a directory, of its weight files' ends."""
    weights: str
    """Of each rank: from the names, shapes and first values of its weights."""
    dtype: str
    quantization: str
    kv_cache_dtype: str
    kv_layout: str
    kv_format: str
    """Of each rank: dtype and shape of a block in each layer."""
    block_size: int
    tensor_parallel: int
    pipeline_parallel: int
    attention: str
    model_runner: str
    max_model_len: int
    sampling: str
    """Engine-wide settings that change what is sampled or returned."""
    block_hash: str
    """Algorithm and seed of the prefix cache's hashes, or that there is none."""

    def difference(self, other: Fingerprint) -> str | None:
        """The first field that differs, with both values; None if the two are equal."""
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name.replace('_', ' ')} differs: {mine} here, {theirs} there"
        return None


def fingerprint(engine: Any) -> Fingerprint:
    """The engine's fingerprint; asks every worker, so take it once, and again after weights were changed."""
    config = engine.vllm_config
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    ranks = [
        msgspec.msgpack.decode(answer, type=WorkerDescription)
        for answer in engine.model_executor.collective_rpc("llumnix_describe")
    ]
    return Fingerprint(
        vllm_version=vllm_version.split("+")[0],
        device=_of_ranks(rank.device for rank in ranks),
        lora=_lora(config.lora_config),
        model=_digest(_hf_config(model), str(model.revision), *_checkpoint(Path(model.model))),
        weights=_of_ranks((rank.weights for rank in ranks), keep_all=True),
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=str(model.quantization),
        kv_cache_dtype=str(cache.cache_dtype),
        kv_layout=cache.get_resolved_kv_cache_layout().name,
        kv_format=_of_ranks(rank.kv_format for rank in ranks),
        block_size=engine.scheduler.block_size,
        tensor_parallel=parallel.tensor_parallel_size,
        pipeline_parallel=parallel.pipeline_parallel_size,
        attention=_of_ranks(",".join(rank.attention) for rank in ranks),
        model_runner=_of_ranks(rank.runner for rank in ranks),
        max_model_len=model.max_model_len,
        sampling=_sampling(config),
        block_hash=_block_hash(cache),
    )


def _block_hash(cache: Any) -> str:
    if not cache.enable_prefix_caching:
        return "off"  # vLLM draws no first hash then
    return f"{cache.prefix_caching_hash_algo} {kv_cache_utils.NONE_HASH.hex()[:16]}"


def _of_ranks(values: Any, keep_all: bool = False) -> str:
    listed = list(values)
    return listed[0] if len(set(listed)) == 1 and not keep_all else " | ".join(listed)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _hf_config(model: Any) -> str:
    settings = model.hf_config.to_dict()
    settings.pop("_name_or_path", None)  # where it lies, which may differ between nodes
    return json.dumps(settings, sort_keys=True, default=str)


def _checkpoint(directory: Path) -> list[str]:
    """Name, size and both ends of each weight file; a model from a hub goes by its revision."""
    ends = []
    for path in sorted(directory.glob("*.safetensors")) if directory.is_dir() else ():
        with path.open("rb") as file:
            head = file.read(_END_BYTES)
            file.seek(max(0, path.stat().st_size - _END_BYTES))
            tail = file.read(_END_BYTES)
        ends.append(f"{path.name} {path.stat().st_size} {hashlib.sha256(head + tail).hexdigest()}")
    return ends


def _lora(lora: Any) -> str:
    return "off" if lora is None else f"rank {lora.max_lora_rank}, {lora.lora_dtype}"


def _sampling(config: Any) -> str:
    model, structured = config.model_config, config.structured_outputs_config
    processors = [str(processor) for processor in model.logits_processors or ()]
    return (
        f"logprobs {model.logprobs_mode}, max {model.max_logprobs}; reasoning parser "
        f"{structured.reasoning_parser or 'none'}, in reasoning {structured.enable_in_reasoning}; "
        f"processors {', '.join(processors) or 'none'}"
    )
