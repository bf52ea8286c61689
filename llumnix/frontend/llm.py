"""ClusterLLM: vLLM's AsyncLLM on a ClusterClient."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterable
from typing import Any

from vllm.config import VllmConfig
from vllm.renderers import renderer_from_config
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.loggers import StatLoggerManager

from llumnix.frontend.client import ClusterClient
from llumnix.frontend.refusals import ServiceUnavailable
from llumnix.frontend.stats import InstanceMetrics, LatencyLog

engine_priority: contextvars.ContextVar[int | None] = contextvars.ContextVar("engine_priority", default=None)
"""The engine priority that the gate decided on for the HTTP request under way."""


class ClusterLLM(AsyncLLM):
    """AsyncLLM that talks to many instances and outlives each of them.

    AsyncLLM.__init__ names its client by a module global, so there is no hook for ours: the parent's
    constructor is not called, and what it builds is built here.
    """

    def __init__(self, vllm_config: VllmConfig, client: ClusterClient) -> None:
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.scheduler_config = vllm_config.scheduler_config
        self.observability_config = vllm_config.observability_config
        self._elastic_ep_lock = asyncio.Lock()
        self.log_requests = False
        self.log_stats = True
        self.renderer = renderer = renderer_from_config(vllm_config)
        self.input_processor = InputProcessor(vllm_config, renderer)
        self.admission_stats = None
        self.output_processor = OutputProcessor(
            renderer.tokenizer,
            log_stats=True,
            stream_interval=vllm_config.scheduler_config.stream_interval,
            tracing_enabled=False,
        )
        self.engine_core = client
        client.on_failed = self.fail_requests
        self.logger_manager = StatLoggerManager(
            vllm_config=vllm_config,
            custom_stat_loggers=[InstanceMetrics],
            enable_default_loggers=False,
        )
        self.latency = LatencyLog()
        self.logger_manager.stat_loggers.append(self.latency)
        self._client_count = 1
        self.output_handler = None
        self.profiler = None
        self._frontend_profiler_injected = False
        self._profile_lock = asyncio.Lock()
        self._profile_session_guard_enabled = False
        self._profile_session_active = False
        self._run_output_handler()

    async def add_request(self, *args: Any, **kwargs: Any) -> Any:
        priority = engine_priority.get()
        if priority is not None:
            kwargs["priority"] = priority
        return await super().add_request(*args, **kwargs)

    async def _add_request(self, request: EngineCoreRequest, *args: Any) -> None:
        try:
            await super()._add_request(request, *args)
        except ServiceUnavailable:
            # vLLM has registered it by then, and takes such an error for one of before.
            await self.abort(request.request_id, internal=True)
            raise

    async def check_health(self) -> None:
        """Raises EngineDeadError, vLLM's 503 of /health, while no instance serves."""
        await super().check_health()
        if not self.engine_core.is_serving():
            raise EngineDeadError

    def fail_requests(self, request_ids: Iterable[str], error: Exception) -> None:
        """End requests with an error that their clients see, with all siblings of n > 1."""
        processor = self.output_processor
        to_abort: list[str] = []
        for request_id in request_ids:
            state = processor.request_states.get(request_id)
            if state is None:
                continue
            whole = request_id if state.parent_req is None else state.parent_req.request_id
            queue = state.queue
            to_abort += processor.abort_requests([whole], internal=True)
            if queue is not None:
                # After the abort: an error replaces the abort's last output in the queue.
                queue.put(error)
        if to_abort:
            self.engine_core.abort_now(to_abort)

    def unfinished_ids(self) -> list[str]:
        return list(self.output_processor.request_states)
