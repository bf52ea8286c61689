"""Calls that are meant for the engine reach every instance, and last for those that join later."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.lora_adapter import write_adapter
from tests.e2e.running import RunningCluster, http, running, settings, wait_for

START_S = 120.0
PROMPT = "Once upon a time there was"


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """One instance, with vLLM's calls for developers and LoRA adapters."""
    directory = tmp_path_factory.mktemp("growing")
    config = settings(
        directory / "state",
        instances={"count": 1, "max": 2},
        engine={"enable_lora": True, "max_lora_rank": 8, "max_loras": 1, "max_cpu_loras": 2},
        http={"vllm": {"enable_prompt_tokens_details": True}},
    )
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with running(config, directory, env=environment) as cluster:
        yield cluster


def post(cluster: RunningCluster, path: str, **body: Any) -> httpx.Response:
    answer = http.post(f"{cluster.url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def is_sleeping(cluster: RunningCluster) -> bool:
    """vLLM's answer if all instances agree; an error if they do not."""
    answer = http.get(f"{cluster.url}/is_sleeping")
    assert answer.status_code == 200, answer.text
    sleeping: bool = answer.json()["is_sleeping"]
    return sleeping


def complete(cluster: RunningCluster, model: str = "tiny", prompt: str = PROMPT) -> Any:
    return cluster.client().completions.create(model=model, prompt=prompt, max_tokens=12, temperature=0)


def text_of(cluster: RunningCluster, model: str) -> str:
    text: str = complete(cluster, model).choices[0].text
    return text


def only(cluster: RunningCluster, instance: str) -> contextlib.AbstractContextManager[None]:
    """Requests go to this instance alone."""
    return cluster.cordoned(*(key for key in cluster.instances() if key != instance))


@contextlib.contextmanager
def joined(cluster: RunningCluster) -> Iterator[str]:
    """One more instance, removed at the end."""
    [instance] = cluster.admin("POST", "/v1/instances", json={"count": 1})["ids"]
    wait_for(lambda: cluster.instances()[instance]["state"] == "running", START_S, f"{instance} serves")
    yield instance
    cluster.admin("DELETE", f"/v1/instances/{instance}")
    wait_for(lambda: cluster.instances()[instance]["state"] == "dead", 60, f"{instance} is gone")


def test_what_was_set_before_an_instance_joined_holds_there_too(
    growing: RunningCluster, tmp_path: Path
) -> None:
    kept, dropped = (write_adapter(tmp_path / name, seed) for seed, name in enumerate(("kept", "dropped")))
    post(growing, "/v1/load_lora_adapter", lora_name="kept", lora_path=str(kept))
    post(growing, "/v1/load_lora_adapter", lora_name="dropped", lora_path=str(dropped))
    plain, adapted = text_of(growing, "tiny"), text_of(growing, "kept")
    assert plain != adapted != text_of(growing, "dropped")
    post(growing, "/v1/unload_lora_adapter", lora_name="dropped")
    with pytest.raises(openai.NotFoundError):
        complete(growing, "dropped")
    shutil.rmtree(dropped)  # who still wanted to load it would fail, and log it
    assert not is_sleeping(growing)
    post(growing, "/sleep?level=1")
    assert is_sleeping(growing)

    with joined(growing) as newcomer:
        shutil.rmtree(kept)  # it must have been loaded before the first request for it
        log = (growing.state_dir / "logs" / f"{newcomer}.log").read_text()
        assert "was not loaded ahead" not in log  # what is dropped is not asked of newcomers
        assert is_sleeping(growing)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(complete, growing) for _ in range(4)]
            wait_for(lambda: num_waiting(growing) == 4, 60, "asleep, the instances take requests")
            post(growing, "/wake_up")
            assert {future.result(60).choices[0].text for future in asked} == {plain}
        assert not is_sleeping(growing)
        for instance in ("i0", newcomer):
            with only(growing, instance):
                assert text_of(growing, "kept") == adapted
                assert text_of(growing, "tiny") == plain
        caches_are_reset_everywhere(growing, newcomer)
        pause_stops_all_until_they_are_resumed(growing)


def num_waiting(cluster: RunningCluster) -> int:
    return sum(instance["waiting"] for instance in cluster.instances().values())


def caches_are_reset_everywhere(cluster: RunningCluster, newcomer: str) -> None:
    prompt = "What one instance has read it need not read again. " * 30

    def cached_tokens(instance: str) -> int:
        with only(cluster, instance):
            details = complete(cluster, prompt=prompt).usage.prompt_tokens_details
        return details.cached_tokens if details else 0

    for instance in ("i0", newcomer):
        assert [cached_tokens(instance) > 0 for _ in range(2)] == [False, True]
    assert post(cluster, "/reset_prefix_cache").json() == {"success": True}
    for instance in ("i0", newcomer):
        assert [cached_tokens(instance) > 0 for _ in range(2)] == [False, True]


def pause_stops_all_until_they_are_resumed(cluster: RunningCluster) -> None:
    post(cluster, "/pause?mode=keep")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(complete, cluster) for _ in range(4)]
        wait_for(lambda: num_waiting(cluster) == 4, 60, "paused, the instances take requests")
        assert not any(future.done() for future in asked)
        post(cluster, "/resume")
        assert len({future.result(60).choices[0].text for future in asked}) == 1
