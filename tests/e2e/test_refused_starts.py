"""Starts that cannot succeed: one sentence, the right exit code, nothing left behind."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from llumnix.cluster import leftovers
from llumnix.engine.memory import machine_memory
from tests.e2e.running import free_port, launch, settings, wait_for

START_S = 120.0


def refusal(config: dict[str, Any], directory: Path, exit_code: int) -> str:
    """The last line of a start that is refused with `exit_code` and leaves nothing behind."""
    cluster = launch(config, directory)
    try:
        wait_for(lambda: cluster.note_run() or cluster.process.poll() is not None, START_S, "llumnixd ends")
        assert cluster.process.returncode == exit_code, cluster.output()
        assert cluster.leftovers() == []
        assert leftovers.read_run(cluster.state_dir) is None
        output = cluster.output()
        assert "Traceback" not in output, output
        sentence = output.splitlines()[-1]
        assert "restarts in" not in sentence
        return sentence
    finally:
        cluster.end()


def test_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sentence = refusal(settings(tmp_path / "state", http={"port": port}), tmp_path, 2)
    assert f"http.port = {port}" in sentence and "free port" in sentence


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("max_model_len", 999_999_999, "max_model_len"), ("max_modell_len", 4096, "engine.max_model_len")],
)
def test_engine_setting_that_vllm_refuses_is_named(tmp_path: Path, key: str, value: int, told: str) -> None:
    config = settings(tmp_path / "state", instances={"count": 1}, engine={key: value})
    sentence = refusal(config, tmp_path, 2)
    assert told in sentence and str(value) in sentence


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [
        ("900G", 1, "expected at most"),
        (f"{machine_memory()[1] * 6 // 10 // 2**20}M", 2, "as 2 KV caches must fit into"),
        ("1M", 1, "expected a KV cache that holds one request of engine.max_model_len tokens"),
    ],
    ids=["too much", "too much together", "too little"],
)
def test_kv_memory_that_does_not_do_is_named(tmp_path: Path, size: str, count: int, expected: str) -> None:
    config = settings(tmp_path / "state", instances={"count": count}, engine={"kv_cache_memory_bytes": size})
    sentence = refusal(config, tmp_path, 2)
    assert f'engine.kv_cache_memory_bytes = "{size}" is not valid' in sentence and expected in sentence


def test_server_argument_that_vllm_refuses_is_named(tmp_path: Path) -> None:
    http = {"port": free_port(), "vllm": {"enable_auto_tool_choice": True, "tool_call_parser": "hermez"}}
    sentence = refusal(settings(tmp_path / "state", instances={"count": 1}, http=http), tmp_path, 2)
    assert sentence.startswith('http.vllm.tool_call_parser = "hermez" is not valid')


def test_directory_that_holds_no_model_is_named(tmp_path: Path) -> None:
    model = tmp_path / "no-model"
    model.mkdir()
    config = settings(tmp_path / "state", instances={"count": 1}, model={"path": str(model)})
    assert str(model) in refusal(config, tmp_path, 2)
