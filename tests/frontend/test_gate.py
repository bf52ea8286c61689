"""The gate in front of vLLM's app."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from llumnix.frontend.gate import Gate
from llumnix.frontend.llm import engine_priority
from llumnix.frontend.priority import KeyRule, PriorityRules


@dataclass
class Room:
    """An Admission that says what the test wants."""

    stopping: bool = False
    serving: bool = True
    queued: int = 0

    def is_stopping(self) -> bool:
        return self.stopping

    def is_serving(self) -> bool:
        return self.serving

    def num_queued(self) -> int:
        return self.queued


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body it was given and the priority in force."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = json.dumps({"body": body.decode(), "priority": engine_priority.get()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": answer})


def client(
    room: Room, max_queued: int | None = None, keys: dict[str, KeyRule] | None = None
) -> httpx.AsyncClient:
    rules = PriorityRules({"high": -10, "normal": 0}, keys or {})
    gate = Gate(echo, admission=room, rules=rules, max_queued=max_queued)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=gate), base_url="http://gate")


async def test_the_body_reaches_the_app_unchanged_and_the_priority_with_it() -> None:
    async with client(Room()) as http:
        body = '{"prompt": "x",  "priority": -10}'
        answer = (await http.post("/v1/completions", content=body)).json()
    assert answer == {"body": body, "priority": -10}


@pytest.mark.parametrize("body", ["", "{", "[1]"])
async def test_a_body_that_makes_no_sense_is_left_to_vllm(body: str) -> None:
    async with client(Room()) as http:
        answer = await http.post("/v1/completions", content=body)
    assert answer.status_code == 200
    assert answer.json() == {"body": body, "priority": 0}


@pytest.mark.parametrize("priority", ["high", "", 1.5, None, [0], {"class": 0}])
async def test_a_priority_that_is_no_whole_number_is_refused(priority: object) -> None:
    async with client(Room()) as http:
        answer = await http.post("/v1/completions", json={"priority": priority})
    assert answer.status_code == 400
    assert f"priority is {priority!r}, expected a whole number" in answer.json()["error"]["message"]


async def test_a_priority_in_text_is_taken_as_vllm_takes_it() -> None:
    async with client(Room()) as http:
        assert (await http.post("/v1/completions", json={"priority": "-10"})).json()["priority"] == -10
        answer = await http.post("/v1/completions", json={"priority": "7"})
    assert answer.status_code == 400 and "priority is 7, expected that of a class" in answer.text


async def test_no_priority_is_set_outside_a_request() -> None:
    async with client(Room()) as http:
        await http.post("/v1/completions", json={"priority": -10})
        assert (await http.get("/v1/models")).json()["priority"] is None


@pytest.mark.parametrize(
    ("room", "status", "retry"),
    [
        (Room(queued=3), 429, "1"),
        (Room(queued=2), 200, None),
        (Room(serving=False), 503, "1"),
        (Room(stopping=True), 503, "1"),
    ],
)
async def test_admission(room: Room, status: int, retry: str | None) -> None:
    async with client(room, max_queued=3) as http:
        answer = await http.post("/v1/chat/completions", json={})
        assert (answer.status_code, answer.headers.get("retry-after")) == (status, retry)
        # What needs no engine is answered all the same.
        assert (await http.post("/tokenize", json={})).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/invocations", "/tokenize", "/v1/models", "/pooling"])
async def test_without_a_known_key_nothing_but_probes_is_let_in(path: str) -> None:
    async with client(Room(), keys={"secret": KeyRule("team")}) as http:
        for authorization in ({}, {"authorization": "Bearer other"}, {"authorization": "Basic secret"}):
            assert (await http.post(path, json={}, headers=authorization)).status_code == 401
        assert (await http.post(path, json={}, headers={"authorization": "Bearer secret"})).status_code == 200
        assert (await http.get("/health")).status_code == 200


async def test_a_class_above_the_keys_limit_is_refused_with_the_keys_name_not_the_key() -> None:
    keys = {"secret": KeyRule("team", max_class="normal")}
    async with client(Room(), keys=keys) as http:
        headers = {"authorization": "Bearer secret", "x-llumnix-priority": "high"}
        answer = await http.post("/v1/completions", json={}, headers=headers)
    assert answer.status_code == 403
    assert "team" in answer.text
    assert "secret" not in answer.text
