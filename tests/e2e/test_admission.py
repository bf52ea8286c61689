"""Who is let in: TLS, API keys, the bound of the queue; tools; and two API servers on one port."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.guarded import (
    MAX_QUEUED,
    TEAM,
    ask_in_turn,
    full,
    num_waiting,
    self_signed,
    trusting,
)
from tests.e2e.running import RunningCluster, wait_for, wait_until_idle
from tests.e2e.streams import Unread

MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,  # else vLLM's hermes parser constrains the call's form only
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


# ---- TLS and keys ---------------------------------------------------------------------------------------


def test_a_certificate_that_is_renewed_on_disk_is_served(guarded: RunningCluster) -> None:
    certificate, _ = self_signed(Path(guarded.config["http"]["tls_cert"]).parent)
    address = ("127.0.0.1", guarded.config["http"]["port"])
    renewed = certificate.read_text()

    def is_served_by_both() -> bool:
        return all(ssl.get_server_certificate(address) == renewed for _ in range(16))

    wait_for(is_served_by_both, 30, "the renewed certificate is served")
    with trusting(guarded) as client:
        assert client.get("/health").status_code == 200


def test_endpoint_speaks_tls_with_its_certificate(guarded: RunningCluster) -> None:
    with trusting(guarded) as client:
        assert client.get("/health").status_code == 200
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{guarded.url}/health")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{guarded.url.replace('https', 'http')}/health")
    assert guarded.admin("GET", "/v1/cluster")["endpoint_url"] == guarded.url


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {TEAM}", f"Bearer {TEAM}x"])
def test_without_a_key_only_probes_are_answered(guarded: RunningCluster, authorization: str | None) -> None:
    headers = {"authorization": authorization} if authorization else {}
    with trusting(guarded) as client:
        for path in ("/v1/models", "/tokenize", "/nothing"):
            assert client.get(path, headers=headers).status_code == 401
        for path in ("/v1/completions", "/v1/chat/completions", "/invocations", "/tokenize"):
            answer = client.post(path, json={"model": "tiny", "prompt": "x"}, headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]
        for path in ("/health", "/version", "/metrics"):
            assert client.get(path, headers=headers).status_code == 200


def test_keys_are_masked_wherever_the_configuration_is_shown(guarded: RunningCluster) -> None:
    shown = guarded.admin("GET", "/v1/config")
    assert [key["name"] for key in shown["http"]["api_keys"]] == ["team", "limited", "important"]
    logs = [path.read_text() for path in (guarded.state_dir / "logs").iterdir()]
    events = json.dumps(guarded.admin("GET", "/v1/events?limit=1000"))
    arguments = [" ".join(process.cmdline()) for process in guarded.processes()]
    for text in (json.dumps(shown), guarded.output(), events, *logs, *arguments):
        assert "key-of-the" not in text


# ---- the queue's bound ----------------------------------------------------------------------------------


def test_beyond_the_queues_bound_requests_are_told_to_come_again(one_instance: RunningCluster) -> None:
    with full(one_instance) as seats:
        asked = ask_in_turn(one_instance, *(f"queued-{k}" for k in range(MAX_QUEUED)))
        assert num_waiting(one_instance) == MAX_QUEUED
        for _ in range(4):  # by either API server
            with pytest.raises(openai.RateLimitError, match="8 requests are queued already") as refused:
                one_instance.client().completions.create(model="tiny", prompt="x", max_tokens=1)
            assert int(refused.value.response.headers["retry-after"]) >= 1
        with trusting(one_instance) as client:
            headers = {"authorization": f"Bearer {TEAM}"}
            body = {"model": "tiny", "prompt": "x"}
            assert client.post("/tokenize", json=body, headers=headers).status_code == 200
        seats[0].close()
        assert {ask.status() for ask in asked} == {200}
    assert one_instance.client().completions.create(model="tiny", prompt="x", max_tokens=1).choices


# ---- several API servers --------------------------------------------------------------------------------


def test_api_servers_share_the_port(guarded: RunningCluster) -> None:
    asked = [Unread(guarded, f"any-{k}", 8000) for k in range(24)]  # the kernel picks one for each connection
    try:
        wait_for(
            lambda: {row["api_server"] for row in guarded.requests()} == {"api0", "api1"},
            10,
            "both have some",
        )
    finally:
        for one in asked:
            one.close()
    wait_until_idle(guarded)


def test_several_api_servers_do_not_herd(guarded: RunningCluster) -> None:
    asked = [Unread(guarded, f"herd-{k}", 8000) for k in range(8)]
    try:
        items = wait_for(
            lambda: found if len(found := guarded.requests()) == len(asked) else None, 60, "all are listed"
        )
        on_first = sum(row["instance"] == "i0" for row in items)
        assert 3 <= on_first <= 5
    finally:
        for one in asked:
            one.close()
    wait_for(lambda: not guarded.requests(), 60, "all are gone")


# ---- tools ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_demanded_tool_is_called_with_arguments_of_its_schema(guarded: RunningCluster, choice: Any) -> None:
    answer = guarded.client().chat.completions.create(
        model="tiny", messages=MESSAGES, tools=[WEATHER], tool_choice=choice, max_tokens=600
    )
    calls = answer.choices[0].message.tool_calls
    assert calls and {call.function.name for call in calls} == {"get_weather"}
    assert all(json.loads(call.function.arguments)["city"] in ("Paris", "Rome") for call in calls)


def test_demanded_tool_is_called_in_a_stream(guarded: RunningCluster) -> None:
    arguments, names = "", []
    for chunk in guarded.client().chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=600,
        stream=True,
    ):
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.function
            names += [call.function.name] if call.function.name else []
            arguments += call.function.arguments or ""
    assert names == ["get_weather"]
    assert json.loads(arguments)["city"] in ("Paris", "Rome")


def test_offered_tool_may_be_left_alone(guarded: RunningCluster) -> None:
    answer = guarded.client().chat.completions.create(
        model="tiny", messages=MESSAGES, tools=[WEATHER], tool_choice="auto", max_tokens=10, temperature=0
    )
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls
