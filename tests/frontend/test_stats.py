"""Metrics of all API servers at one of them, and the latencies that the manager is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from llumnix.frontend.stats import AllApiServers, LatencyLog, answer_metrics

API_SERVER = """
from prometheus_client import Counter, Gauge
Counter("vllm:generation_tokens", "Tokens.", ["model_name", "engine"]).labels("m", "3").inc({tokens})
Gauge("vllm:num_requests_running", "Now.", ["model_name", "engine"], multiprocess_mode="mostrecent").labels(
    "m", "3").set({tokens})
Counter("http_requests", "All.").inc()
"""


def run_api_server(program: str, metrics_dir: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics_dir)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=280)


async def test_any_api_server_answers_for_all_by_instance(tmp_path: Path) -> None:
    for tokens in (5, 7):
        run_api_server(API_SERVER.format(tokens=tokens), tmp_path)
    present = {3}
    app = FastAPI()

    @app.get("/metrics")
    def vllms_own() -> str:
        return "of this process only"

    answer_metrics(app, str(tmp_path), lambda: present)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
        response = await client.get("/metrics")
        present.clear()
        present.add(4)
        later = await client.get("/metrics")
    assert "i3" not in later.text and "http_requests_total 2.0" in later.text
    assert response.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    labels = (("engine", "3"), ("instance", "i3"), ("model_name", "m"))
    assert samples == {
        ("vllm:generation_tokens_total", labels): 12.0,
        ("vllm:num_requests_running", labels): 7.0,
        ("http_requests_total", ()): 2.0,
    }


WITH_VLLM = """
from types import SimpleNamespace
from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import IterationStats, SchedulerStats
from llumnix.frontend.stats import InstanceMetrics
config = VllmConfig()
config.model_config = SimpleNamespace(served_model_name="tiny", max_model_len=64, is_diffusion=False)
manager = StatLoggerManager(config, custom_stat_loggers=[InstanceMetrics], enable_default_loggers=False)
assert len(manager.stat_loggers) == 1
for number, tokens in ((0, 3), (7, 4), (0, 5)):
    iteration = IterationStats()
    iteration.num_generation_tokens = tokens
    iteration.time_to_first_tokens_iter = [0.5]
    manager.record(SchedulerStats(num_running_reqs=tokens), iteration, engine_idx=number)
"""


@pytest.mark.slow
def test_vllms_own_metrics_come_for_each_instance_that_says_something(tmp_path: Path) -> None:
    run_api_server(WITH_VLLM, tmp_path)
    values = {
        (sample.name, sample.labels["instance"]): sample.value
        for metric in AllApiServers(str(tmp_path), {0, 7, 8}).collect()
        for sample in metric.samples
        if "instance" in sample.labels
    }
    assert values["vllm:generation_tokens_total", "i0"] == 8.0
    assert values["vllm:generation_tokens_total", "i7"] == 4.0
    assert values["vllm:num_requests_running", "i0"] == 5.0
    assert values["vllm:time_to_first_token_seconds_count", "i7"] == 1.0
    assert {instance for _, instance in values} == {"i0", "i7"}


def iteration(ttft_s: list[float], *finished: tuple[int, float]) -> Any:
    return SimpleNamespace(
        time_to_first_tokens_iter=ttft_s,
        finished_requests=[
            SimpleNamespace(num_generation_tokens=tokens, mean_time_per_output_token=tpot_s)
            for tokens, tpot_s in finished
        ],
    )


def test_latencies_are_taken_once_and_a_single_token_has_no_time_per_token() -> None:
    log = LatencyLog()
    log.record(None, None)
    log.record(None, iteration([0.25], (10, 0.01), (1, 0.0)))
    log.record(None, iteration([0.5]), engine_idx=2)
    assert log.take() == ((0.25, 0.5), (0.01,))
    assert log.take() == ((), ())
