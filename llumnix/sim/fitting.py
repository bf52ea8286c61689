"""A hardware profile fitted to a live instance behind an OpenAI endpoint."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from llumnix.errors import ConfigError, RefusedError
from llumnix.profiles import HardwareProfile

_SHORTEST = 32
_DECODE_TOKENS = 32
_REPEATS = 3
_TIMEOUT_S = 300.0


def _doubling(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first, ... and last itself."""
    return [*itertools.takewhile(lambda n: n < last, (first << i for i in itertools.count())), last]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent: prompts up to `longest` tokens, up to `largest_batch` requests at a time."""

    longest: int = 2048
    largest_batch: int = 32

    @property
    def prompts(self) -> list[int]:
        return _doubling(_SHORTEST, self.longest)

    def batches(self, capacity_tokens: int) -> list[tuple[int, int]]:
        """(requests at a time, tokens of each prompt) that fit into the KV cache without preemption."""
        return [
            (batch, prompt)
            for prompt in sorted({_SHORTEST, max(_SHORTEST, self.longest // 4)})
            for batch in _doubling(1, self.largest_batch)
            if batch * (prompt + _DECODE_TOKENS) < 0.8 * capacity_tokens
        ]


@dataclass(frozen=True, slots=True)
class PrefillSample:
    num_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DecodeSample:
    batch: int
    num_kv_tokens: float
    """Mean of the batch's KV tokens over the measured steps."""
    seconds: float
    """Of one step."""


@dataclass(frozen=True, slots=True)
class Cache:
    num_blocks: int
    block_size: int


def fit(
    name: str,
    prefills: Sequence[PrefillSample],
    decodes: Sequence[DecodeSample],
    cache: Cache,
    kv_bytes_per_token: int,
) -> HardwareProfile:
    """Least squares without negative coefficients; in milliseconds as HardwareProfile has them."""
    lengths = np.array([sample.num_tokens for sample in prefills], dtype=float)
    powers = np.stack((np.ones_like(lengths), lengths, lengths**2), axis=1)
    prefill_ms, per_token, per_token2 = _fitted(powers, [sample.seconds * 1e3 for sample in prefills])
    loads = np.array([(1.0, sample.batch, sample.num_kv_tokens) for sample in decodes])
    decode_ms, per_request, per_kv_token = _fitted(loads, [sample.seconds * 1e3 for sample in decodes])
    return HardwareProfile(
        name=name,
        num_blocks=cache.num_blocks,
        block_size=cache.block_size,
        prefill_ms=prefill_ms,
        prefill_ms_per_token=per_token,
        prefill_ms_per_token2=per_token2,
        decode_ms=decode_ms,
        decode_ms_per_request=per_request,
        decode_ms_per_kv_token=per_kv_token,
        kv_bytes_per_token=kv_bytes_per_token,
    )


def _fitted(columns: np.ndarray, values: Sequence[float]) -> list[float]:
    """Coefficients of 0 or more; errors count relative to the value, so that short times are met too."""
    target = np.array(values)
    used = list(range(columns.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(columns[:, used] / target[:, None], np.ones_like(target), rcond=None)
        if found.min() >= 0 or len(used) == 1:
            break
        del used[int(found.argmin())]
    result = [0.0] * columns.shape[1]
    for column, value in zip(used, found, strict=True):
        result[column] = max(0.0, float(value))
    return result


def fit_profile(
    url: str,
    name: str,
    plan: Plan,
    kv_bytes_per_token: int,
    num_blocks: int | None = None,
    api_key: str | None = None,
) -> HardwareProfile:
    """Measures an otherwise idle instance, for seconds to minutes; raises ConfigError, RefusedError."""

    async def measure() -> HardwareProfile:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        base_url = url.rstrip("/").removesuffix("/v1")
        async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=_TIMEOUT_S) as client:
            endpoint = _Endpoint(client)
            cache = await endpoint.cache(num_blocks)
            prefills = [await endpoint.prefill(length) for length in plan.prompts]
            batches = plan.batches(cache.num_blocks * cache.block_size)
            decodes = [await endpoint.decode(batch, prompt) for batch, prompt in batches]
        return fit(name, prefills, decodes, cache, kv_bytes_per_token)

    try:
        return asyncio.run(measure())
    except httpx.HTTPStatusError as error:
        reason = error.response.text.strip() or error.response.reason_phrase
        raise RefusedError(f"{error.request.url} answered {error.response.status_code}: {reason}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(
            f'--url "{url}" cannot be reached ({error}): expected an OpenAI endpoint.'
        ) from None


class _Endpoint:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        # Prompts that no cache knows.
        self._tokens = random.Random()

    async def cache(self, num_blocks: int | None) -> Cache:
        """From the endpoint's metrics, as vLLM has them."""
        text = (await self._client.get("/metrics")).text
        info = next((line for line in text.splitlines() if line.startswith("vllm:cache_config_info")), "")
        found = {name: int(value) for name, value in re.findall(r'(block_size|num_gpu_blocks)="(\d+)"', info)}
        blocks = num_blocks or found.get("num_gpu_blocks")
        if not blocks:
            raise ConfigError("The endpoint's /metrics name no number of KV blocks: expected --num-blocks.")
        return Cache(blocks, found.get("block_size", 16))

    async def prefill(self, num_tokens: int) -> PrefillSample:
        seconds = [(await self._stream(num_tokens, 1))[0] for _ in range(_REPEATS)]
        return PrefillSample(num_tokens, min(seconds))

    async def decode(self, batch: int, prompt: int) -> DecodeSample:
        streams = await asyncio.gather(*(self._stream(prompt, _DECODE_TOKENS) for _ in range(batch)))
        # The stream that started last waited for no other's prefill.
        steps = [(last - first) / (_DECODE_TOKENS - 1) for first, last in streams]
        return DecodeSample(batch, batch * (prompt + _DECODE_TOKENS / 2), min(steps))

    async def _stream(self, prompt: int, output: int) -> tuple[float, float]:
        """Seconds until the first and until the last token."""
        body = {
            "prompt": [self._tokens.randrange(10, 250) for _ in range(prompt)],
            "max_tokens": output,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        started = time.perf_counter()
        first = last = None
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            if response.is_error:
                await response.aread()
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {") and json.loads(line[6:]).get("choices"):
                    last = time.perf_counter() - started
                    first = last if first is None else first
        if first is None or last is None:
            raise RefusedError(f"A prompt of {prompt} tokens was answered without a token.")
        return first, last
