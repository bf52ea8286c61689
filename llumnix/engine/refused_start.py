"""Which setting is wrong when vLLM's workers refuse to start: they give a reason, but not as a refusal."""

from __future__ import annotations

import re

from llumnix.config import Config
from llumnix.config.messages import wrong
from llumnix.engine.memory import DEFAULT_FRACTION
from llumnix.errors import ConfigError

_NO_WEIGHTS = "Cannot find any model weights"
_TOO_SMALL = (
    "To serve at least one request|No available memory for the cache blocks|Cannot auto-fit max_model_len"
)
# Not "Free memory on device": what another process holds of a GPU may be free again at the next try.
_TOO_LARGE = "Available memory on node"
# Said of any allocation: with a size that was asked for, it is the cache that did not fit beside the model.
_NOT_ALLOCATED = "CUDA out of memory|can't allocate memory"


def refused_setting(reason: str, config: Config) -> ConfigError | None:
    """The setting at fault, where an engine's start failed for `reason`; None where it is not known."""
    if _NO_WEIGHTS in reason:
        return wrong("model.path", config.model.path, "a model with weights (vLLM found none)")
    if (said := _said(_TOO_SMALL, reason)) is not None:
        return _wrong_size(config, "a KV cache that holds one request of engine.max_model_len tokens", said)
    if (said := _said(_TOO_LARGE, reason)) is not None:
        return _wrong_size(config, "a KV cache that fits into the memory available", said)
    if "kv_cache_memory_bytes" in config.engine and (said := _said(_NOT_ALLOCATED, reason)) is not None:
        return _wrong_size(config, "a KV cache that fits into memory beside the model", said)
    return None


def _said(phrases: str, reason: str) -> str | None:
    """The sentence of `reason` that one of the phrases begins."""
    found = re.search(rf"({phrases}).*?(?=\. |\.?$)", reason)
    return found[0] if found is not None else None


def _wrong_size(config: Config, expected: str, said: str) -> ConfigError:
    key, value = "kv_cache_memory_bytes", config.engine.get("kv_cache_memory_bytes")
    if value is None or "memory utilization" in said:
        key = "gpu_memory_utilization"
        value = config.engine.get(key, DEFAULT_FRACTION)
    return wrong(f"engine.{key}", value, f"{expected} (vLLM says: {said})")
