"""Priority classes from the request to the engine's queue, and what an operator changes there."""

from __future__ import annotations

import threading
from typing import Any

import openai
import pytest

from tests.e2e.guarded import (
    IMPORTANT,
    LIMITED,
    TEAM,
    Ask,
    ask_in_turn,
    full,
    num_waiting,
    rows,
    trusting,
)
from tests.e2e.running import RunningCluster, wait_for, wait_until_idle
from tests.e2e.streams import Unread

HIGH = {"x-llumnix-priority": "high"}
MESSAGES: list[Any] = [{"role": "user", "content": "Hello"}]


def order_of(asked: list[Ask]) -> list[str]:
    """Names in the order of their answers; asserts that all were answered."""
    assert [ask.status() for ask in asked] == [200] * len(asked)
    return [ask.response_id for ask in sorted(asked, key=lambda ask: ask.ended_at)]


def test_high_request_overtakes_normal_ones_in_a_full_engine(one_instance: RunningCluster) -> None:
    with full(one_instance) as seats:
        asked = ask_in_turn(one_instance, "a", "b", "c")
        asked += ask_in_turn(one_instance, "h", headers=HIGH)
        seats[0].close()
        assert order_of(asked) == ["cmpl-h", "cmpl-a", "cmpl-b", "cmpl-c"]
        seats[1].assert_goes_on()


def test_operator_moves_a_waiting_request_up_the_queue(one_instance: RunningCluster) -> None:
    with full(one_instance) as seats:
        asked = ask_in_turn(one_instance, "a", "b", "c")
        asked += ask_in_turn(one_instance, "h", headers=HIGH)
        wait_for(lambda: rows(one_instance, "cmpl-c"), 60, "the admin API knows c")
        answer = one_instance.admin("PATCH", "/v1/requests/cmpl-c", json={"priority": "high"})
        assert (answer["priority"], answer["state"]) == ("high", "queued")
        wait_for(lambda: rows(one_instance, "cmpl-c")[0]["priority"] == "high", 60, "c is listed as high")
        seats[0].close()
        # c came before h, so that among equals it goes first.
        assert order_of(asked) == ["cmpl-c", "cmpl-h", "cmpl-a", "cmpl-b"]


def test_class_comes_from_header_field_or_key_in_this_order(one_instance: RunningCluster) -> None:
    with full(one_instance) as seats:
        asked = ask_in_turn(one_instance, "none")
        asked += ask_in_turn(one_instance, "field", priority=-10)
        asked += ask_in_turn(one_instance, "header", headers=HIGH)
        asked += ask_in_turn(
            one_instance, "both", headers={"X-Llumnix-Priority": "normal"}, priority=-10, key=IMPORTANT
        )
        asked += ask_in_turn(one_instance, "key", key=IMPORTANT)
        wait_for(lambda: rows(one_instance, "cmpl-key"), 60, "all are listed")
        classes = {ask.response_id: rows(one_instance, ask.response_id)[0]["priority"] for ask in asked}
        assert classes == {
            "cmpl-none": "normal",
            "cmpl-field": "high",
            "cmpl-header": "high",
            "cmpl-both": "normal",
            "cmpl-key": "high",
        }
        of_class = one_instance.admin("GET", "/v1/requests?priority=high")["items"]
        assert {row["response_id"] for row in of_class} == {"cmpl-field", "cmpl-header", "cmpl-key"}
        [load] = [p for p in one_instance.instances()["i0"]["priorities"] if p["name"] == "high"]
        assert (load["running"], load["waiting"]) == (0, 3)
        seats[0].close()
        order_of(asked)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize(
    ("key", "headers", "body", "status", "told"),
    [
        (TEAM, {"x-llumnix-priority": "urgent"}, {}, 400, "expected one of high, normal"),
        (TEAM, {}, {"priority": 5}, 400, "-10 (high), 0 (normal)"),
        (LIMITED, HIGH, {}, 403, "'normal' at most"),
        (LIMITED, {}, {"priority": -10}, 403, "'normal' at most"),
    ],
)
def test_class_that_is_none_or_too_high_is_refused(
    guarded: RunningCluster,
    path: str,
    key: str,
    headers: dict[str, str],
    body: dict[str, Any],
    status: int,
    told: str,
) -> None:
    with trusting(guarded) as client:
        answer = client.post(
            path,
            json={
                "model": "tiny",
                "prompt": "x",
                "messages": MESSAGES,
                "input": "x",
                "max_tokens": 1,
                **body,
            },
            headers={"authorization": f"Bearer {key}", **headers},
        )
    assert answer.status_code == status and told in answer.json()["error"]["message"]


def test_operator_ends_all_samples_of_a_stream(guarded: RunningCluster) -> None:
    stream = guarded.client().chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        n=3,
        max_tokens=6000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    response_id = next(stream).id
    failure: list[Exception] = []

    def read() -> None:
        try:
            for _ in stream:
                pass
        except openai.APIError as error:
            failure.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    wait_for(lambda: len(rows(guarded, response_id)) == 3, 60, "all three samples are listed")
    guarded.admin("DELETE", f"/v1/requests/{response_id}")
    reader.join(60)
    assert not reader.is_alive() and "aborted by operator admin" in str(failure[0])
    wait_until_idle(guarded)
    [event] = [e for e in guarded.events("operator.abort_request") if response_id in e["target"]]
    assert event["actor"] == "admin"


def test_operator_ends_a_request_that_never_ran(one_instance: RunningCluster) -> None:
    with full(one_instance):
        [ask, other] = ask_in_turn(one_instance, "unwanted", "wanted", n=2)
        [row, _] = wait_for(lambda: rows(one_instance, "cmpl-unwanted"), 60, "it is listed")
        assert (row["state"], row["output_tokens"]) == ("queued", 0)
        one_instance.admin("DELETE", f"/v1/requests/{row['id']}")
        assert ask.status() == 410
        assert ask.answer and "aborted by operator" in ask.answer.json()["error"]["message"]
        wait_for(lambda: not rows(one_instance, "cmpl-unwanted"), 60, "its samples are gone")
        gone = one_instance.admin_response("DELETE", f"/v1/requests/{row['id']}")
        assert gone.status_code == 404
        assert len(rows(one_instance, "cmpl-wanted")) == 2
    assert other.status() == 200


def test_client_that_goes_away_leaves_the_queue(one_instance: RunningCluster) -> None:
    with full(one_instance):
        leaves = Unread(one_instance, "leaves", 8000)
        wait_for(lambda: num_waiting(one_instance) == 1, 60, "it is queued")
        leaves.close()
        wait_for(lambda: num_waiting(one_instance) == 0, 60, "the queue is empty")
