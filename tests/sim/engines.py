"""Engines of the virtual clock, driven by hand."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

from llumnix.engine.main import prepare_environment
from llumnix.profiles import HardwareProfile, find_profile

with patch.dict(os.environ):  # only here: other tests start processes of their own
    prepare_environment(num_threads=1)
    from vllm.v1.engine.core import EngineCore

    from llumnix.engine.simulated.build import EngineBuilder, request_of
    from llumnix.engine.simulated.executor import VirtualTimeExecutor

PROFILE = "a10-llama-7b"


def build_engine(profile: str = PROFILE, *, prefix_caching: bool = True) -> EngineCore:
    with patch.dict(os.environ):
        prepare_environment(num_threads=1)
        return EngineBuilder(find_profile(profile), profile, prefix_caching=prefix_caching).build()


def executor(engine: EngineCore) -> VirtualTimeExecutor:
    assert isinstance(engine.model_executor, VirtualTimeExecutor)
    return engine.model_executor


def profile_of(engine: EngineCore) -> HardwareProfile:
    return executor(engine).profile


def submit(engine: EngineCore, number: int, prompt_tokens: int, output_tokens: int, **more: Any) -> str:
    """Queue a request of its own tokens; its id."""
    request = request_of(f"{number}@1.0", [number] * prompt_tokens, output_tokens, float(number), **more)
    engine.add_request(*engine.preprocess_add_request(request))
    return request.request_id


def state(engine: EngineCore) -> dict[str, Any]:
    """All that later steps depend on."""
    scheduler = engine.scheduler
    (manager,) = scheduler.kv_cache_manager.coordinator.single_type_managers
    pool = scheduler.kv_cache_manager.block_pool
    return {
        "running": [r.request_id for r in scheduler.running],
        "waiting": [r.request_id for r in scheduler.waiting],
        "requests": {
            r.request_id: (
                r.status,
                list(r.all_token_ids),
                r.num_output_tokens,
                r.num_computed_tokens,
                r.num_in_flight_tokens,
                r.num_preemptions,
                [bytes(block_hash) for block_hash in r.block_hashes],
            )
            for r in scheduler.requests.values()
        },
        "tables": {r: [block.block_id for block in blocks] for r, blocks in manager.req_to_blocks.items()},
        "free": [block.block_id for block in pool.free_block_queue.get_all_free_blocks()],
        "references": [block.ref_cnt for block in pool.blocks],
        "cached": [None if b.block_hash is None else bytes(b.block_hash) for b in pool.blocks],
    }
