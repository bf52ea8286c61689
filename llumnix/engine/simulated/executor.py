"""Executors without a model: a step makes a token per request and takes the time of a hardware profile."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec
import torch
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheSpec
from vllm.v1.outputs import ModelRunnerOutput

from llumnix.engine.migration.import_order import ImportOrder
from llumnix.engine.migration.state import WorkerDescription, WorkerState
from llumnix.engine.simulated.arguments import PROFILE_KEY
from llumnix.profiles import Chunk, find_profile

TOKEN = 100
"""What every step samples; an ordinary token of any tokenizer."""
_LAYER = "model.layers.0.self_attn.attn"


class SimulatedExecutor(Executor):
    """Has no worker; what a migration asks of one is answered here. Subclasses say how time passes."""

    def _init_executor(self) -> None:
        self.profile = find_profile(self.vllm_config.additional_config[PROFILE_KEY])
        self.num_steps = 0
        self._num_prompt_tokens: dict[str, int] = {}
        """Of every request that the scheduler has sent and not yet finished, as a model runner keeps it."""
        self._idle = _done(ModelRunnerOutput([], {}))

    # ---- what the engine asks when it starts ------------------------------------------------------------

    def get_kv_cache_specs(self) -> list[dict[str, KVCacheSpec]]:
        # The shape is of no consequence: nobody allocates it, and num_gpu_blocks_override sets the number.
        spec = FullAttentionSpec(
            block_size=self.profile.block_size, num_kv_heads=1, head_size=64, dtype=torch.float16
        )
        return [{_LAYER: spec}]

    def determine_available_memory(self) -> list[int]:
        return [1 << 40]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        return [["LBHNC"]]

    def set_kv_cache_layout(self, layout_name: str) -> None:
        pass

    def initialize_from_config(self, kv_cache_configs: list[KVCacheConfig]) -> None:
        pass

    def compile_or_warm_up_model(self) -> None:
        pass

    def check_health(self) -> None:
        pass

    def shutdown(self) -> None:
        pass

    # ---- steps ------------------------------------------------------------------------------------------

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:
        if not scheduler_output.num_scheduled_tokens:
            self._forget(scheduler_output.finished_req_ids)
            return self._idle if non_block else self._idle.result()
        self.num_steps += 1
        step_ms, unfinished = self._measure(scheduler_output)
        self._spend(step_ms, scheduler_output)
        self._forget(scheduler_output.finished_req_ids)
        req_ids = list(scheduler_output.num_scheduled_tokens)
        sampled: list[list[int]] = [[] if r in unfinished else [TOKEN] for r in req_ids]
        output = ModelRunnerOutput(req_ids, {r: i for i, r in enumerate(req_ids)}, sampled)
        return _done(output) if non_block else output

    def sample_tokens(self, grammar_output: GrammarOutput | None, non_block: bool = False) -> Any:
        raise RuntimeError("a simulated step samples when it is executed")

    def _spend(self, step_ms: float, scheduler_output: SchedulerOutput) -> None:
        raise NotImplementedError

    def _measure(self, scheduled: SchedulerOutput) -> tuple[float, set[str]]:
        """Milliseconds of a step, and the requests whose prompts it does not finish (they make no token).

        A request that computes one token behind others decodes; all else is prefill, recomputation included.
        """
        batch = num_kv_tokens = 0
        chunks: list[Chunk] = []
        unfinished: set[str] = set()
        num_tokens = scheduled.num_scheduled_tokens
        for new in scheduled.scheduled_new_reqs:
            self._num_prompt_tokens[new.req_id] = len(new.prompt_token_ids or ())
            start = new.num_computed_tokens
            end = start + num_tokens[new.req_id]
            chunks.append(Chunk(start, end))
            if end < len(new.prefill_token_ids or new.prompt_token_ids or ()):
                unfinished.add(new.req_id)
        cached = scheduled.scheduled_cached_reqs
        for req_id, start, num_outputs in zip(
            cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
        ):
            end = start + num_tokens[req_id]
            if end == start + 1 and start:
                batch += 1
                num_kv_tokens += end
            else:
                chunks.append(Chunk(start, end))
            if end < self._num_prompt_tokens[req_id] + num_outputs:
                unfinished.add(req_id)
        return self.profile.step_ms(batch, num_kv_tokens, chunks), unfinished

    def _forget(self, finished_req_ids: set[str]) -> None:
        for req_id in finished_req_ids:
            self._num_prompt_tokens.pop(req_id, None)

    # ---- the worker's half of a migration ---------------------------------------------------------------

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        name = method if isinstance(method, str) else method.__name__
        answer = [_ANSWERS[name](self, *args)] if name in _ANSWERS else [None]
        return _done(answer) if non_block else answer

    def _describe(self) -> bytes:
        return msgspec.msgpack.encode(
            WorkerDescription(
                rank=0,
                runner="simulated",
                device="simulated",
                attention=["none"],
                kv_format=f"{self.profile.kv_bytes_per_token} bytes per token",
                weights=self.profile.name,
            )
        )

    def _import_request(self, order: ImportOrder, states: list[bytes]) -> None:
        self._num_prompt_tokens[order.request_id] = len(order.prompt_token_ids)

    def _forget_request(self, req_id: str) -> None:
        self._num_prompt_tokens.pop(req_id, None)


_NO_STATE = msgspec.msgpack.encode(WorkerState())
_ANSWERS: dict[str, Callable[..., Any]] = {
    "llumnix_describe": SimulatedExecutor._describe,
    "llumnix_export_request": lambda *_: _NO_STATE,
    "llumnix_replayed_state": lambda *_: _NO_STATE,
    "llumnix_import_request": SimulatedExecutor._import_request,
    "llumnix_forget_request": SimulatedExecutor._forget_request,
    "get_supported_tasks": lambda *_: ("generate",),
}
"""By worker method; what is not here has nothing to do without a model."""


class RealTimeExecutor(SimulatedExecutor):
    """Sleeps for the time of each step: a live cluster without a model."""

    def _spend(self, step_ms: float, scheduler_output: SchedulerOutput) -> None:
        time.sleep(step_ms / 1e3)


class VirtualTimeExecutor(SimulatedExecutor):
    """Leaves the time of the last step, and what it was, for the driver of the virtual clock to read."""

    step_ms = 0.0
    preempted: frozenset[str] | set[str] = frozenset()
    only_decoded = False
    """The last step had no prefill in it, took nobody from the queue and preempted nobody."""

    def _spend(self, step_ms: float, scheduler_output: SchedulerOutput) -> None:
        self.step_ms = step_ms
        self.preempted = scheduler_output.preempted_req_ids or frozenset()
        scheduled = scheduler_output.scheduled_cached_reqs
        self.only_decoded = not (
            self.preempted
            or scheduler_output.scheduled_new_reqs
            or scheduled.resumed_req_ids
            or scheduler_output.total_num_scheduled_tokens > len(scheduled.req_ids)
        )


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future
