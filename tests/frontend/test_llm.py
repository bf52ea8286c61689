"""AsyncLLM on many instances."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from llumnix.frontend.llm import ClusterLLM
from llumnix.frontend.refusals import ServiceUnavailable


class NoInstance:
    """A ClusterClient that can place nothing."""

    def __init__(self) -> None:
        self.aborted: list[str] = []

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        raise ServiceUnavailable("no instance can take requests now")

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    def shutdown(self, timeout: float | None = None) -> None:
        pass


async def test_a_refused_request_leaves_nothing_behind() -> None:
    llm = ClusterLLM.__new__(ClusterLLM)
    llm.log_requests = False
    llm.admission_stats = None
    unlimited = SimpleNamespace(max_num_queued_reqs=None, max_num_queued_tokens=None)
    llm.scheduler_config = unlimited  # type: ignore[assignment]
    llm.output_processor = OutputProcessor(None, log_stats=False, stream_interval=1, tracing_enabled=False)
    llm.engine_core = NoInstance()  # type: ignore[assignment]
    params = SamplingParams(detokenize=False)
    request = EngineCoreRequest(
        request_id="r0",
        external_req_id="cmpl-r0",
        prompt_token_ids=[1, 2],
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=1.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    queue = RequestOutputCollector(params.output_kind, "r0")
    with pytest.raises(ServiceUnavailable):
        await llm._add_request(request, "text", None, 0, queue)
    assert not llm.output_processor.has_unfinished_requests()
    assert llm.unfinished_ids() == []
