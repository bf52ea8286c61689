"""Whether this machine has the memory that the instances' KV caches ask for."""

from __future__ import annotations

import os

import psutil
from vllm.platforms import current_platform
from vllm.utils.cpu_resource_utils import get_cgroup_memory_limit

from llumnix.config.base import is_loopback
from llumnix.config.messages import missing, wrong
from llumnix.config.root import Config
from llumnix.engine.args import engine_args
from llumnix.engine.model_path import resolved_path
from llumnix.errors import ConfigError

_LEGACY_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


def check_memory(config: Config) -> None:
    """Refuses more KV cache than this machine's memory can hold (CPU only: on GPU vLLM measures at start)."""
    if config.simulated is not None or not current_platform.is_cpu():
        return
    args = engine_args(config, model="/" if config.builtin_model else resolved_path(config))
    if os.environ.get(_LEGACY_VARIABLE):
        raise ConfigError(
            f"{_LEGACY_VARIABLE} = {os.environ[_LEGACY_VARIABLE]} in the environment would silently replace "
            "engine.kv_cache_memory_bytes: expected it to be unset."
        )
    workers = instances_here(config) * config.world_size
    total, available = machine_memory()
    asked = args.kv_cache_memory_bytes
    if asked is None:
        check_fraction(args.gpu_memory_utilization, workers, total, available)
    elif asked * workers > available:
        raise wrong(
            "engine.kv_cache_memory_bytes",
            config.engine["kv_cache_memory_bytes"],
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


def instances_here(config: Config) -> int:
    """The fewest instances that this machine must hold: all where no other node can join."""
    is_only_node = config.ray.address == "local" and is_loopback(config.ray.node_ip)
    return config.instances.count if is_only_node else 1


def machine_memory() -> tuple[int, int]:
    """Total and available memory in bytes, inside the container's limit where there is one."""
    memory = psutil.virtual_memory()
    limit = get_cgroup_memory_limit() or memory.total
    return min(memory.total, limit), min(memory.available, limit)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f}"
