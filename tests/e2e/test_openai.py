"""The OpenAI endpoint on real engines: what vLLM serves, it serves through two instances too."""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.running import RunningCluster, http, wait_for
from tests.e2e.single_engine import greedy_texts

PROMPT = "The capital of France is"
MESSAGES: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
CITY_SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "population": {"enum": [1, 2]}},
    "required": ["city", "population"],
    "additionalProperties": False,
}


def post(cluster: RunningCluster, path: str, body: Any) -> httpx.Response:
    return http.post(f"{cluster.url}{path}", json=body, timeout=60)


def message_of(response: httpx.Response) -> str:
    """The message of an error in OpenAI's form."""
    message: str = response.json()["error"]["message"]
    return message


# ---- answers --------------------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_a_single_engine(cluster: RunningCluster, tmp_path: Path) -> None:
    client = cluster.client()
    model = client.models.list().data[0].model_dump()["root"]
    prompts = [f"{start} {k}" for k, start in enumerate(["Once upon a time", PROMPT, "def main():"] * 4)]
    prompts.append("A cluster of machines " * 200)

    def ask(prompt: str) -> str:
        answer = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=48, temperature=0, extra_body={"ignore_eos": True}
        )
        return answer.choices[0].text

    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(ask, prompts))
    assert len(set(answers)) > 3
    assert answers == greedy_texts(model, prompts, 48, tmp_path)


def test_completion_counts_its_tokens(cluster: RunningCluster) -> None:
    answer = cluster.client().completions.create(
        model="tiny", prompt=PROMPT, max_tokens=12, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length" and answer.choices[0].text
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 12)


def test_streamed_completion_is_the_unstreamed_one_in_pieces(cluster: RunningCluster) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 40, "temperature": 0}
    whole = cluster.client().completions.create(**options)
    chunks = list(
        cluster.client().completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert len(chunks) > 10
    assert chunks[-1].usage == whole.usage


def test_streamed_chat_is_the_unstreamed_one_in_pieces(cluster: RunningCluster) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 40, "temperature": 0}
    whole = cluster.client().chat.completions.create(**options).choices[0]
    deltas = [c.choices[0] for c in cluster.client().chat.completions.create(**options, stream=True)]
    assert deltas[0].delta.role == "assistant"
    assert "".join(delta.delta.content or "" for delta in deltas) == whole.message.content
    assert deltas[-1].finish_reason == whole.finish_reason


def test_several_prompts_and_samples_come_back_in_order(cluster: RunningCluster) -> None:
    answer = cluster.client().completions.create(
        model="tiny", prompt=[PROMPT, "Once upon"], n=3, max_tokens=8, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len({choice.text for choice in answer.choices}) > 2
    assert answer.usage is not None and answer.usage.completion_tokens == 6 * 8


def test_streamed_samples_each_end(cluster: RunningCluster) -> None:
    ended = set()
    for chunk in cluster.client().chat.completions.create(
        model="tiny", messages=MESSAGES, n=4, max_tokens=10, stream=True
    ):
        ended |= {choice.index for choice in chunk.choices if choice.finish_reason}
    assert ended == {0, 1, 2, 3}


def test_seed_makes_samples_repeatable(cluster: RunningCluster) -> None:
    def texts(seed: int) -> list[str]:
        answer = cluster.client().completions.create(
            model="tiny", prompt=PROMPT, n=2, seed=seed, temperature=1.5, max_tokens=16
        )
        return [choice.text for choice in answer.choices]

    first = texts(7)
    # Ties go round between the instances, so that both have been asked.
    assert all(texts(7) == first for _ in range(3))
    assert texts(8) != first


def test_logprobs_of_answer_and_prompt(cluster: RunningCluster) -> None:
    answer = cluster.client().completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=5,
        temperature=0,
        logprobs=3,
        extra_body={"prompt_logprobs": 1, "ignore_eos": True},
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens and logprobs.top_logprobs and logprobs.token_logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    for token, own, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert len(top) == 3 and own is not None
        assert math.isclose(own, top[token]) and own == max(top.values())
    of_prompt = answer.choices[0].model_dump()["prompt_logprobs"]
    assert len(of_prompt) == 7 and of_prompt[0] is None and all(of_prompt[1:])


def test_logprobs_of_a_streamed_chat(cluster: RunningCluster) -> None:
    chunks = cluster.client().chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=6, stream=True, logprobs=True, top_logprobs=2
    )
    content = [
        token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs and choice.logprobs.content
        for token in choice.logprobs.content
    ]
    assert content and all(len(token.top_logprobs) == 2 for token in content)


def test_stop_string_ends_the_answer_in_front_of_it(cluster: RunningCluster) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 60, "temperature": 0}
    whole = cluster.client().completions.create(**options).choices[0].text
    stop = whole[30:34]
    stopped = cluster.client().completions.create(**options, stop=[stop]).choices[0]
    assert stopped.finish_reason == "stop" and stopped.text == whole[: whole.index(stop)]
    # The engine does not see stop strings: it is told to stop by the API server.
    wait_for(lambda: not cluster.admin("GET", "/v1/requests")["items"], 60, "no request is left")


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"choice": ["alpha", "beta"]}, "alpha|beta"),
        ({"regex": "[0-9]{4}-[0-9]{2}"}, "[0-9]{4}-[0-9]{2}"),
        ({"grammar": 'root ::= "yes" | "no"'}, "yes|no"),
    ],
)
def test_structured_output_keeps_to_its_constraint(
    cluster: RunningCluster, constraint: dict[str, Any], pattern: str
) -> None:
    for _ in range(2):
        answer = cluster.client().completions.create(
            model="tiny", prompt=PROMPT, max_tokens=20, extra_body={"structured_outputs": constraint}
        )
        assert re.fullmatch(pattern, answer.choices[0].text)


def test_structured_output_keeps_to_its_json_schema(cluster: RunningCluster) -> None:
    answer = cluster.client().chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=800,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": CITY_SCHEMA}},
    )
    city = json.loads(answer.choices[0].message.content or "")
    assert city["city"] in ("Paris", "Rome") and city["population"] in (1, 2)


def test_responses_and_messages_are_served_too(cluster: RunningCluster) -> None:
    response = cluster.client().responses.create(model="tiny", input="Hello", max_output_tokens=16)
    assert response.output_text
    message = post(cluster, "/v1/messages", {"model": "tiny", "max_tokens": 8, "messages": MESSAGES}).json()
    assert message["role"] == "assistant" and message["usage"]["output_tokens"] <= 8


# ---- what needs no engine -------------------------------------------------------------------------------


def test_tokenize_and_detokenize_are_inverse(cluster: RunningCluster) -> None:
    tokens = post(cluster, "/tokenize", {"model": "tiny", "prompt": PROMPT, "add_special_tokens": False})
    assert tokens.json()["count"] == len(tokens.json()["tokens"]) == 6
    text = post(cluster, "/detokenize", {"model": "tiny", "tokens": tokens.json()["tokens"]})
    assert text.json()["prompt"] == PROMPT


def test_model_health_and_version_are_told(cluster: RunningCluster) -> None:
    [model] = cluster.client().models.list().data
    assert model.id == "tiny" and model.model_dump()["max_model_len"] == 8192
    assert http.get(f"{cluster.url}/health").status_code == 200
    assert http.get(f"{cluster.url}/version").json() == {"version": "0.32.0"}


# ---- errors ---------------------------------------------------------------------------------------------


def test_too_long_a_prompt_is_a_400_that_says_so(cluster: RunningCluster) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 8192") as error:
        cluster.client().completions.create(model="tiny", prompt=[5] * 9000, max_tokens=1)
    assert error.value.status_code == 400


def test_unknown_model_is_a_404(cluster: RunningCluster) -> None:
    with pytest.raises(openai.NotFoundError, match="`gpt-9` does not exist"):
        cluster.client().chat.completions.create(model="gpt-9", messages=MESSAGES)


@pytest.mark.parametrize("content", ['{"model":', "[1]", '"text"', ""])
def test_malformed_body_is_a_400(cluster: RunningCluster, content: str) -> None:
    headers = {"content-type": "application/json"}
    answer = http.post(f"{cluster.url}/v1/completions", content=content, headers=headers)
    assert answer.status_code == 400 and message_of(answer)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n must be at least 1"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"top_p": 2}, "top_p"),
        ({"logprobs": -2}, "logprobs"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"structured_outputs": {"regex": "(["}}, "regex"),
        ({"stop_token_ids": ["x"]}, "stop_token_ids"),
    ],
)
def test_wrong_parameter_is_a_400_that_names_it(
    cluster: RunningCluster, wrong: dict[str, Any], told: str
) -> None:
    answer = post(cluster, "/v1/completions", {"model": "tiny", "prompt": PROMPT, **wrong})
    assert answer.status_code == 400 and told in message_of(answer)


def test_wrong_method_and_path_are_told(cluster: RunningCluster) -> None:
    assert http.get(f"{cluster.url}/v1/completions").status_code == 405
    assert http.get(f"{cluster.url}/v1/nothing").status_code == 404


# ---- metrics --------------------------------------------------------------------------------------------


def test_metrics_count_per_instance(cluster: RunningCluster) -> None:
    before = generated_tokens(cluster)
    for _ in range(4):
        cluster.client().completions.create(
            model="tiny", prompt=PROMPT, max_tokens=10, extra_body={"ignore_eos": True}
        )
    after = wait_for(
        lambda: (
            moved if sum((moved := generated_tokens(cluster)).values()) >= sum(before.values()) + 40 else None
        ),
        5,
        "the tokens are counted",
    )
    assert sum(after.values()) == sum(before.values()) + 40
    # Ties go round, so that each of two idle instances got two of the four.
    assert len([engine for engine in after if after[engine] > before[engine]]) == 2


def generated_tokens(cluster: RunningCluster) -> dict[str, float]:
    """vLLM's own counter by its `engine` label."""
    text = http.get(f"{cluster.url}/metrics").text
    return {
        sample.labels["engine"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "vllm:generation_tokens_total" and sample.labels["model_name"] == "tiny"
    }
