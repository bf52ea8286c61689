"""Whether this machine has the memory that the instances' KV caches ask for; importable without vLLM."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import psutil

from llumnix.config.base import is_loopback
from llumnix.config.messages import missing, wrong
from llumnix.config.root import Config
from llumnix.engine.main import uses_gpus
from llumnix.errors import ConfigError

DEFAULT_FRACTION = 0.92
"""vLLM's gpu_memory_utilization where none is set."""
_LEGACY_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def check_memory(config: Config) -> None:
    """Refuses more KV cache than this machine's memory can hold (CPU only: on GPU vLLM measures at start).

    Values that vLLM does not take are left for it to refuse.
    """
    if config.simulated is not None or uses_gpus():
        return
    if os.environ.get(_LEGACY_VARIABLE):
        raise ConfigError(
            f"{_LEGACY_VARIABLE} = {os.environ[_LEGACY_VARIABLE]} in the environment would silently replace "
            "engine.kv_cache_memory_bytes: expected it to be unset."
        )
    workers = instances_here(config) * config.world_size
    total, available = machine_memory()
    value = config.engine.get("kv_cache_memory_bytes")
    if value is None:
        fraction = config.engine.get("gpu_memory_utilization", DEFAULT_FRACTION)
        if isinstance(fraction, int | float):
            check_fraction(fraction, workers, total, available)
    elif (asked := num_bytes(value)) is not None and asked * workers > available:
        raise wrong(
            "engine.kv_cache_memory_bytes",
            value,
            f"at most {available // workers} (bytes), as {workers} KV caches must fit into "
            f"{_gib(available)} GiB of available memory",
        )


def check_fraction(fraction: float, workers: int, total: int, available: int) -> None:
    """Refuses KV caches that vLLM would size by a share of the whole machine each, where they do not fit."""
    if fraction * total * workers > available:
        raise missing(
            "engine.kv_cache_memory_bytes",
            f"the size of one KV cache, at most {available // workers} (bytes), as {workers} of "
            f"{fraction:g} (engine.gpu_memory_utilization) of {_gib(total)} GiB do not fit into "
            f"{_gib(available)} GiB of available memory",
        )


def num_bytes(value: Any) -> int | None:
    """A size as vLLM reads it ("1K" is 1024, "1.5k" is 1500); None where it takes none such."""
    match = re.fullmatch(r"\s*(\d+)(\.\d+)?([kmgtKMGT]?)\s*", str(value))
    if match is None or (match[2] and not match[3].islower()):
        return None
    base = 1000 if match[3].islower() else 1024
    return int(float(match[1] + (match[2] or "")) * base ** _POWERS.get(match[3].lower(), 0))


def instances_here(config: Config) -> int:
    """The fewest instances that this machine must hold: all where no other node can join."""
    is_only_node = config.ray.address == "local" and is_loopback(config.ray.node_ip)
    return config.instances.count if is_only_node else 1


def machine_memory() -> tuple[int, int]:
    """Total and available memory in bytes, inside the container's limit where there is one."""
    memory = psutil.virtual_memory()
    limit = memory.total
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # of the other version of cgroups, or "max"
            limit = min(limit, int(Path(path).read_text()))
    return limit, min(memory.available, limit)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
