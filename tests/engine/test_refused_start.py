"""What vLLM's workers say when they cannot start, as the setting that an operator has to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llumnix.config import Config, parse_config

pytest.importorskip("vllm")

from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.utils.mem_utils import format_gib
from vllm.v1.core.kv_cache_utils import _check_enough_kv_cache_memory

from llumnix.engine.main import _why_not_started
from llumnix.engine.refused_start import refused_setting

GIB = 2**30


def engine(**arguments: Any) -> Config:
    return parse_config({"engine": arguments})


def not_started(config: Config, available: int) -> str:
    """Why an instance does not start whose largest request takes 2 GiB."""
    with pytest.raises(ValueError) as caught:
        _check_enough_kv_cache_memory(available, lambda: 2 * GIB, 8192, lambda _: 4096)
    return _why_not_started(caught.value, config)


def test_a_kv_cache_too_small_for_one_request_is_named_as_a_wrong_setting() -> None:
    assert not_started(engine(kv_cache_memory_bytes="1G"), GIB) == (
        'ConfigError: engine.kv_cache_memory_bytes = "1G" is not valid: expected a KV cache that holds one '
        "request of engine.max_model_len tokens (vLLM says: To serve at least one request with the model's "
        f"max seq len (8192), ({format_gib(2 * GIB)} GiB KV cache is needed, which is larger than the "
        f"available KV cache memory ({format_gib(GIB)} GiB))."
    )


def test_without_a_size_the_share_of_the_memory_is_what_leaves_no_room() -> None:
    reason = not_started(engine(), 0)
    assert reason.startswith("ConfigError: engine.gpu_memory_utilization = 0.92 is not valid")


@pytest.mark.parametrize(
    ("arguments", "said", "key"),
    [
        (
            {"kv_cache_memory_bytes": "900G"},
            "Available memory on node 0 (7.5/8.0 GiB) on kv cache allocation is less than requested memory "
            "for kv (900.0 GiB). Decrease --kv-cache-memory-bytes",
            'engine.kv_cache_memory_bytes = "900G"',
        ),
        (
            {"kv_cache_memory_bytes": "900G"},
            "CUDA out of memory. Tried to allocate 900.00 GiB",
            'engine.kv_cache_memory_bytes = "900G"',
        ),
    ],
)
def test_a_kv_cache_too_large_for_the_memory_is_named(arguments: dict[str, Any], said: str, key: str) -> None:
    config = engine(**arguments)
    for reason in (f"ValueError: {said}", f"RuntimeError: Worker failed with error '{said}', please check"):
        message = str(refused_setting(reason, config))
        assert message.startswith(f"{key} is not valid: expected a KV cache that fits into")
        assert message.endswith(f"(vLLM says: {said.split('. ')[0]}).")


def test_a_model_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    loader = DefaultModelLoader(LoadConfig())
    with pytest.raises(RuntimeError) as caught:
        loader._prepare_weights(str(tmp_path), None, None, True, None)
    reason = _why_not_started(caught.value, parse_config({"model": {"path": str(tmp_path)}}))
    assert reason == (
        f'ConfigError: model.path = "{tmp_path}" is not valid: expected a model with weights '
        "(vLLM found none)."
    )


@pytest.mark.parametrize(
    "reason",
    [
        "its process died",
        "OutOfMemoryError: CUDA out of memory. Tried to",
        "ValueError: Free memory on device cuda:0 (7.5/80.0 GiB) on startup is less than desired GPU memory",
    ],
)
def test_what_no_setting_is_known_for_is_left_as_it_is(reason: str) -> None:
    assert refused_setting(reason, engine()) is None
