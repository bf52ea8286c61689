"""What vLLM measures in an API server: its Prometheus metrics by instance, and latencies for the manager."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from starlette.requests import Request
from starlette.routing import Route
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import AggregateStatLoggerBase, PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats

from llumnix.frontend.membership import instance_name

_MAX_SAMPLES = 10_000
"""Between two tellings: more than an API server finishes in a second."""


class InstanceMetrics(PrometheusStatLogger):
    """vLLM's metrics for instances that come and go; `engine_idx` is an instance's number.

    PrometheusStatLogger makes the series of all its engines when it is made, so there is one for each
    instance. Every later one takes the former's metrics out of the process's registry: they are read from
    prometheus_client's files (multi-process mode) only. The parent's constructor is not called; it is the
    parent as StatLoggerManager adds one of its own otherwise.
    """

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int] | None = None) -> None:
        self.vllm_config = vllm_config
        self._loggers: dict[int, PrometheusStatLogger] = {}

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        self._logger(engine_idx).record(scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        for logger in self._loggers.values():
            logger.record_sleep_state(sleep, level)

    def log_engine_initialized(self) -> None:
        """Each logger does so when it is made."""

    def _logger(self, number: int) -> PrometheusStatLogger:
        if number not in self._loggers:
            logger = self._loggers[number] = PrometheusStatLogger(self.vllm_config, [number])
            logger.log_engine_initialized()
        return self._loggers[number]


class LatencyLog(AggregateStatLoggerBase):
    """Time to first token and time per output token, in seconds, since they were last taken."""

    def __init__(self) -> None:
        self._ttft_s: deque[float] = deque(maxlen=_MAX_SAMPLES)
        self._tpot_s: deque[float] = deque(maxlen=_MAX_SAMPLES)

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if iteration_stats is None:
            return
        self._ttft_s.extend(iteration_stats.time_to_first_tokens_iter)
        self._tpot_s.extend(
            finished.mean_time_per_output_token
            for finished in iteration_stats.finished_requests
            if finished.num_generation_tokens > 1
        )

    def log_engine_initialized(self) -> None:
        """There is nothing to say of an engine."""

    def take(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return (ttft_s, tpot_s) and forget them."""
        taken = tuple(self._ttft_s), tuple(self._tpot_s)
        self._ttft_s.clear()
        self._tpot_s.clear()
        return taken


class AllApiServers(Collector):
    """The metrics of all API servers together, with the label `instance` beside vLLM's `engine`.

    prometheus_client's files keep every series for good: those of instances that are not `present` are left
    out, as their last values are true no more.
    """

    def __init__(self, directory: str, present: Collection[int]) -> None:
        """`present`: the numbers of the instances that are there."""
        self._files = MultiProcessCollector(None, directory)
        self._present = present

    def collect(self) -> Iterator[Metric]:
        for metric in self._files.collect():
            metric.samples = [found for sample in metric.samples if (found := self._shown(sample))]
            yield metric

    def _shown(self, sample: Sample) -> Sample | None:
        engine = sample.labels.get("engine", "")
        if not engine.isdecimal():
            return sample
        if int(engine) not in self._present:
            return None
        return sample._replace(labels={**sample.labels, "instance": instance_name(int(engine))})


def answer_metrics(app: FastAPI, directory: str, present: Callable[[], Collection[int]]) -> None:
    """Have /metrics answer for all API servers, whichever is asked, and the instances that are there."""

    async def metrics(_: Request) -> Response:
        registry = CollectorRegistry()
        registry.register(AllApiServers(directory, present()))
        # On a thread: the files of many processes take a while, and streams go on meanwhile.
        text = await asyncio.to_thread(generate_latest, registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    # Before vLLM's own route at this path.
    app.router.routes.insert(0, Route("/metrics", metrics))
