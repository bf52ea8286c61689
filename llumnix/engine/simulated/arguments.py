"""What vLLM is told where `engine.simulated` names a hardware profile; imports nothing of vLLM."""

from __future__ import annotations

from typing import Any

from llumnix.profiles import find_profile

PROFILE_KEY = "llumnix_profile"
"""Key of vLLM's `additional_config` that names the hardware profile."""


def default_arguments(profile_name: str) -> dict[str, Any]:
    """The size of the machine; [engine] may say otherwise."""
    profile = find_profile(profile_name)
    return {
        "block_size": profile.block_size,
        # vLLM keeps one block aside as the null block.
        "num_gpu_blocks_override": profile.num_blocks + 1,
        "max_num_seqs": profile.max_num_seqs,
        "max_num_batched_tokens": profile.max_batched_tokens,
        "enforce_eager": True,
        "async_scheduling": False,
    }


def fixed_arguments(profile_name: str) -> dict[str, Any]:
    """What makes the engine one that runs no model but takes its time."""
    return {
        "distributed_executor_backend": "llumnix.engine.simulated.executor.RealTimeExecutor",
        "additional_config": {PROFILE_KEY: profile_name},
    }
