"""Fitting a hardware profile: known coefficients come back, from samples and from an endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from llumnix.errors import ConfigError, RefusedError
from llumnix.profiles import PROFILES, Chunk, find_profile, save_profile
from llumnix.sim.fitting import Cache, DecodeSample, Plan, PrefillSample, fit, fit_profile

A10 = PROFILES["a10-llama-7b"]
PLAN = Plan(longest=4096, largest_batch=64)
METRICS = 'vllm:cache_config_info{block_size="32",engine="0",num_gpu_blocks="500"} 1.0\n'


def test_the_coefficients_come_back_from_exact_samples() -> None:
    prefills = [PrefillSample(n, A10.step_ms(0, 0, [Chunk(0, n)]) / 1e3) for n in PLAN.prompts]
    decodes = [
        DecodeSample(batch, batch * prompt, A10.decode_step_ms(batch, batch * prompt) / 1e3)
        for batch, prompt in PLAN.batches(capacity_tokens=A10.num_blocks * 16)
    ]
    fitted = fit("copy", prefills, decodes, Cache(A10.num_blocks, 16), A10.kv_bytes_per_token)
    for name in ("prefill_ms", "prefill_ms_per_token", "prefill_ms_per_token2"):
        assert getattr(fitted, name) == pytest.approx(getattr(A10, name), rel=1e-3)
    for name in ("decode_ms", "decode_ms_per_request", "decode_ms_per_kv_token"):
        assert getattr(fitted, name) == pytest.approx(getattr(A10, name), rel=1e-3)


def test_no_coefficient_is_negative_though_the_samples_bend_down() -> None:
    prefills = [PrefillSample(n, n**0.5 / 1e3) for n in (64, 256, 1024)]
    decodes = [DecodeSample(batch, batch * 100.0, 0.04 - batch * 1e-4) for batch in (1, 2, 8, 32)]
    fitted = fit("bent", prefills, decodes, Cache(100, 16), 1)
    assert fitted.prefill_ms_per_token2 == fitted.decode_ms_per_request == 0.0
    assert min(fitted.prefill_ms, fitted.prefill_ms_per_token, fitted.decode_ms) > 0


def test_batches_fit_into_the_cache() -> None:
    batches = PLAN.batches(capacity_tokens=5000)
    assert (1, 32) in batches
    assert (4, 1024) not in batches
    assert all(batch * (prompt + 32) < 4000 for batch, prompt in batches)


class FakeEndpoint(BaseHTTPRequestHandler):
    """Answers at once with as many tokens as it is asked for."""

    metrics = METRICS
    status = 200

    def do_GET(self) -> None:
        self._answer(self.metrics.encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        token = b'data: {"choices": [{"text": "x"}]}\n\n'
        self._answer(token * body["max_tokens"] + b"data: [DONE]\n\n")

    def _answer(self, body: bytes) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def endpoint(**settings: object) -> Iterator[str]:
    handler = type("Handler", (FakeEndpoint,), settings)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_profile_of_an_endpoint_is_one_that_the_simulator_takes(tmp_path: Path) -> None:
    with endpoint() as url:
        fitted = fit_profile(url, "mine", Plan(longest=64, largest_batch=2), kv_bytes_per_token=4096)
    assert (fitted.num_blocks, fitted.block_size, fitted.kv_bytes_per_token) == (500, 32, 4096)
    save_profile(fitted, tmp_path / "mine.json")
    assert find_profile(str(tmp_path / "mine.json")) == fitted


def test_what_the_endpoint_does_not_tell_must_be_given() -> None:
    plan = Plan(longest=64, largest_batch=2)
    with endpoint(metrics="") as url, pytest.raises(ConfigError, match="expected --num-blocks"):
        fit_profile(url, "mine", plan, 4096)
    with endpoint(metrics="") as url:
        assert fit_profile(url, "mine", plan, 4096, num_blocks=7).num_blocks == 7
    with endpoint(metrics=METRICS, status=401) as url, pytest.raises(RefusedError, match="answered 401"):
        fit_profile(url, "mine", plan, 4096)
