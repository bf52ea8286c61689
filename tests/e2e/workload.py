"""Requests of every kind whose answers must not depend on where they run, and what they answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from tests.e2e.running import RunningCluster

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "integer"}}},
    "required": ["a", "b"],
}
KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 11},
    {"temperature": 0, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 0.8, "seed": 13, "top_p": 0.9, "top_k": 50},
    {"temperature": 0, "logprobs": 3},
    {"temperature": 1.0, "seed": 17, "n": 2},
    {"temperature": 0, "structured_outputs": {"json": SCHEMA}, "ignore_eos": False},
    {"temperature": 0, "min_tokens": 50, "stop": ["zzzz"], "bad_words": ["the"]},
]
SHARED_PREFIX = "A long story that many of these requests begin with. " * 40


def bodies(count: int, max_tokens: int) -> list[dict[str, Any]]:
    """`count` streamed completions, all kinds in turn; every third begins with the same long prefix."""
    return [
        {
            "model": "tiny",
            "prompt": f"{SHARED_PREFIX if k % 3 == 0 else ''}Number {k} begins with",
            "max_tokens": max_tokens,
            "stream": True,
            "ignore_eos": True,
            **KINDS[k % len(KINDS)],
        }
        for k in range(count)
    ]


async def answer(http: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Any:
    """Texts and logprobs by choice, or what went wrong."""
    texts: dict[int, str] = {}
    tokens: dict[int, list[str]] = {}
    async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            return (await response.aread()).decode()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return event["error"]
            for choice in event["choices"]:
                index = choice["index"]
                texts[index] = texts.get(index, "") + choice["text"]
                if choice["logprobs"]:
                    tokens.setdefault(index, []).extend(choice["logprobs"]["tokens"])
    return texts, tokens


async def answers(cluster: RunningCluster, requests: list[dict[str, Any]]) -> list[Any]:
    """All at once, in the order of `requests`."""
    async with httpx.AsyncClient(timeout=240) as http:
        return list(await asyncio.gather(*(answer(http, cluster.url, body) for body in requests)))
