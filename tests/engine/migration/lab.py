"""A real vLLM engine in this process, driven step by step."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from llumnix.engine.main import prepare_environment


def set_environment() -> None:
    """What vLLM and torch read when they are imported and when an engine is built."""
    prepare_environment(num_threads=1)
    # vLLM compiles some small functions at their first use, which takes longer than most tests here.
    os.environ["TORCH_COMPILE_DISABLE"] = "1"


with patch.dict(os.environ):  # only here: other tests start processes of their own
    set_environment()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.envs import disable_envs_cache as disable_envs_cache
    from vllm.lora.request import LoRARequest as LoRARequest
    from vllm.platforms import current_platform
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams
    from vllm.v1.core.sched.interface import PauseState as PauseState
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor
    from vllm.v1.request import RequestStatus

    from llumnix.engine.migration.port import MigrationPort
    from llumnix.engine.migration.worker import CPU_WORKER, EXTENSION

BLOCK_SIZE = 32
CHUNK_TOKENS = 256


@dataclass
class Result:
    """What the client of one request has got, over all engines that ran it."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    logprob_ids: list[list[int]] = field(default_factory=list)
    prompt_logprobs: list[list[float]] | None = None
    prefill_stats: list[Any] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    finish: str | None = None


class Lab:
    """One engine."""

    def __init__(self, model: Path, *, force_async: bool = False, **arguments: Any) -> None:
        settings: dict[str, Any] = {
            "dtype": "float32",
            "enforce_eager": True,
            "block_size": BLOCK_SIZE,
            "kv_cache_memory_bytes": 16 << 20,
            "max_model_len": 1024,
            "max_num_seqs": 12,
            "max_num_batched_tokens": 1024,
            "distributed_executor_backend": "uni",
            "scheduling_policy": "priority",
            "prefix_caching_hash_algo": "sha256_cbor",
            "mm_processor_cache_gb": 0,
            "worker_cls": CPU_WORKER if current_platform.is_cpu() else "auto",
            "worker_extension_cls": EXTENSION,
        }
        settings |= arguments
        with patch.dict(os.environ):
            set_environment()
            self._build(model, settings, force_async)
        self.port = MigrationPort(self.engine)
        self.views = self.port.kv_views() if settings["distributed_executor_backend"] == "uni" else None
        self.results: dict[str, Result] = {}
        self._step = (
            self.engine.step if self.engine.batch_queue is None else self.engine.step_with_batch_queue
        )

    def _build(self, model: Path, settings: dict[str, Any], force_async: bool) -> None:
        config = AsyncEngineArgs(model=str(model), **settings).create_engine_config()
        if force_async:
            # Off on CPU by vLLM's platform; its scheduler and runner work there all the same.
            config.scheduler_config.async_scheduling = True
        self.engine = EngineCore(config, Executor.get_class(config), log_stats=True)

    def submit(self, request_id: str, prompt: list[int], params: SamplingParams, **more: Any) -> Result:
        """Add a request; its result is the same object on whatever engine it is made."""
        params = params.clone()
        tokenizer = self.engine.structured_output_manager.tokenizer
        params.update_from_generation_config({}, tokenizer.eos_token_id)
        params.update_from_tokenizer(tokenizer)
        if params.structured_outputs is not None:
            params.structured_outputs._backend = "xgrammar"
        result = self.results[request_id] = Result()
        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=more.pop("arrival_time", 1.0),
            lora_request=more.pop("lora_request", None),
            cache_salt=None,
            data_parallel_rank=None,
            **more,
        )
        self.engine.add_request(*self.engine.preprocess_add_request(request))
        return result

    def step(self) -> None:
        if not self.engine.scheduler.has_requests() and not self.engine.batch_queue:
            return
        outputs, executed = self._step()
        self.engine.post_step(executed)
        for of_client in (outputs or {}).values():
            for output in of_client.outputs:
                self._take(output)

    def run(self, *requests: str, limit: int = 2000) -> None:
        """Step until the requests are finished (all, if none is named)."""
        for _ in range(limit):
            if all(self.results[r].finish for r in requests or self.results):
                return
            self.step()
        raise AssertionError(f"{requests or 'requests'} did not finish")

    def idle(self) -> None:
        """Step until nothing is left to tell the workers."""
        while self.engine.scheduler.has_requests() or self.engine.batch_queue:
            self.step()

    def reset(self) -> None:
        """Nothing runs, nothing is cached."""
        self.engine.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
        self.idle()
        assert self.port.check_integrity() == []
        assert self.engine.scheduler.reset_prefix_cache()
        self.results.clear()

    @contextmanager
    def in_chunks(self) -> Iterator[None]:
        """Prefill at most CHUNK_TOKENS in a step."""
        scheduler = self.engine.scheduler
        usual = scheduler.max_num_scheduled_tokens
        scheduler.max_num_scheduled_tokens = CHUNK_TOKENS
        try:
            yield
        finally:
            scheduler.max_num_scheduled_tokens = usual

    @contextmanager
    def short_of_blocks(self, num_free: int) -> Iterator[None]:
        """Have only so many free blocks."""
        pool = self.engine.scheduler.kv_cache_manager.block_pool
        taken = pool.get_new_blocks(self.num_free_blocks() - num_free)
        try:
            yield
        finally:
            pool.free_blocks(taken)

    def num_free_blocks(self) -> int:
        return self.engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def request(self, request_id: str) -> Any:
        return self.engine.scheduler.requests[request_id]

    def _take(self, output: Any) -> None:
        result = self.results[output.request_id]
        assert result.finish is None
        result.tokens += output.new_token_ids
        if output.new_logprobs is not None:
            result.logprobs += output.new_logprobs.logprobs.tolist()
            result.logprob_ids += output.new_logprobs.logprob_token_ids.tolist()
        if output.new_prompt_logprobs_tensors is not None:
            assert result.prompt_logprobs is None
            result.prompt_logprobs = output.new_prompt_logprobs_tensors.logprobs.tolist()
        if output.prefill_stats is not None:
            result.prefill_stats.append(output.prefill_stats)
        result.events += [event.type.name for event in output.events or ()]
        if output.finish_reason is not None:
            result.finish = str(output.finish_reason)


def prompt(num_tokens: int, seed: int = 0) -> list[int]:
    """Ordinary tokens of the tiny model."""
    random_ = random.Random(seed)
    return [random_.randrange(20, 1000) for _ in range(num_tokens)]


def sampling(**parameters: Any) -> SamplingParams:
    """Greedy and never ending by itself, unless told otherwise."""
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 24, "ignore_eos": True} | parameters)


def json_schema() -> StructuredOutputsParams:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"type": "integer"}},
        "required": ["name", "size"],
    }
    return StructuredOutputsParams(json=schema)
