"""[engine] and [http.vllm] against vLLM's own arguments: what reaches vLLM, and what an operator is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llumnix.config import load_config, parse_config

pytest.importorskip("vllm")

from vllm.platforms import current_platform

from llumnix.engine import memory
from llumnix.engine.args import check_engine_args, engine_args, server_namespace
from llumnix.engine.migration.worker import CPU_WORKER
from llumnix.engine.owned_args import _OWNED, owner
from llumnix.errors import ConfigError

CONFIGS = Path(__file__).parent.parent.parent / "configs"
GIB = 2**30


def refusal(document: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_engine_args(parse_config(document))
    message = str(caught.value)
    assert "\n" not in message
    return message


# What reaches vLLM


def test_engine_arguments_arrive_as_vllms_command_line_would_set_them() -> None:
    engine = {
        "max-model-len": "8k",
        "kv_cache_memory_bytes": "256M",
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "gpu_memory_utilization": 0.5,
        "dtype": "float32",
        "allowed_media_domains": ["a.example", "b.example"],
        "compilation_config": {"cudagraph_capture_sizes": [1, 2]},
        "override_generation_config": {"temperature": 0.5},
        "hf_overrides": {"rope_scaling": {"factor": 2.0}},
    }
    args = engine_args(parse_config({"engine": engine}), model="/")
    assert (args.max_model_len, args.kv_cache_memory_bytes) == (8000, 256 * 2**20)
    assert (args.enforce_eager, args.enable_prefix_caching) == (True, False)
    assert (args.gpu_memory_utilization, args.dtype) == (0.5, "float32")
    assert args.allowed_media_domains == ["a.example", "b.example"]
    assert args.compilation_config.cudagraph_capture_sizes == [1, 2]
    assert args.override_generation_config == {"temperature": 0.5}
    assert args.hf_overrides == {"rope_scaling": {"factor": 2.0}}


def test_what_llumnix_fixes_is_set_whatever_vllms_defaults_are() -> None:
    args = engine_args(parse_config({"model": {"served_name": "m"}}), model="/")
    assert args.scheduling_policy == "priority"
    assert args.prefix_caching_hash_algo == "sha256_cbor"
    assert args.mm_processor_cache_gb == 0
    assert args.disable_log_stats is False
    assert args.worker_cls == (CPU_WORKER if current_platform.is_cpu() else "auto")
    assert (args.model, args.served_model_name) == ("/", ["m"])


@pytest.mark.parametrize(
    ("engine", "backend"),
    [({}, "uni"), ({"tensor_parallel_size": 2}, "mp"), ({"pipeline_parallel_size": 2}, "mp")],
)
def test_an_instance_with_one_worker_runs_it_in_its_own_process(engine: dict[str, Any], backend: str) -> None:
    args = engine_args(parse_config({"engine": engine}), model="/")
    assert args.distributed_executor_backend == backend
    assert args.tensor_parallel_size * args.pipeline_parallel_size == engine.get(
        "tensor_parallel_size", 1
    ) * engine.get("pipeline_parallel_size", 1)


def test_two_calls_share_no_configuration_object() -> None:
    config = parse_config({})
    one, other = engine_args(config, model="/"), engine_args(config, model="/")
    assert one.compilation_config is not other.compilation_config


def test_the_server_gets_its_own_arguments_and_those_of_the_http_section() -> None:
    http = {
        "port": 9000,
        "api_servers": 3,
        "api_keys": [{"name": "a", "key": "hush"}],
        "tls_cert": "/c.pem",
        "tls_key": "/k.pem",
        "vllm": {"enable-auto-tool-choice": True, "tool_call_parser": "hermes", "allowed_origins": ["*"]},
    }
    namespace = server_namespace(parse_config({"http": http}), "/")
    assert (namespace.host, namespace.port, namespace.api_server_count) == ("127.0.0.1", 9000, 3)
    assert (namespace.ssl_certfile, namespace.ssl_keyfile) == ("/c.pem", "/k.pem")
    assert namespace.api_key == ["hush"]
    assert (namespace.enable_auto_tool_choice, namespace.tool_call_parser) == (True, "hermes")
    assert namespace.allowed_origins == ["*"]


def test_a_model_directory_is_passed_on_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert engine_args(parse_config({"model": {"path": "./model"}})).model == str(tmp_path / "model")


@pytest.mark.parametrize(
    "name", ["quickstart.toml", "gpu-single-node.toml", "multi-node.toml", "reference.toml"]
)
def test_vllm_takes_the_arguments_of_every_example(name: str, tmp_path: Path) -> None:
    config = load_config(CONFIGS / name)
    secret = tmp_path / "key"
    secret.write_text("hush")
    keys = [{"name": entry.name, "key_file": str(secret)} for entry in config.http.api_keys]
    http = {"vllm": dict(config.http.vllm), "api_keys": keys}
    check_engine_args(parse_config({"engine": dict(config.engine), "http": http}))


# What an operator is told


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (
            {"max_modellen": 1},
            "engine.max_modellen = 1 is not a known key: did you mean engine.max_model_len?",
        ),
        ({"tool_call_parser": "hermes"}, "did you mean http.vllm.tool_call_parser?"),
        ({"dtype": "float8"}, 'engine.dtype = "float8" is not valid: expected one of auto, bfloat16'),
        ({"seed": "x"}, 'engine.seed = "x" is not valid: expected a whole number.'),
        ({"seed": 1.5}, "engine.seed = 1.5 is not valid: expected a whole number."),
        (
            {"gpu_memory_utilization": "x"},
            'engine.gpu_memory_utilization = "x" is not valid: expected a number.',
        ),
        ({"enforce_eager": "yes"}, 'engine.enforce_eager = "yes" is not valid: expected true or false.'),
        ({"enforce_eager": 1}, "engine.enforce_eager = 1 is not valid: expected true or false."),
        ({"tokenizer": True}, "engine.tokenizer = true is not valid"),
        ({"max_model_len": "long"}, 'engine.max_model_len = "long" is not valid: expected what vLLM takes'),
        ({"compilation_config": {"no_such": 1}}, "engine.compilation_config = { no_such = 1 } is not valid"),
        ({"_api_process_count": 2}, "engine._api_process_count = 2 is not a known key"),
    ],
)
def test_an_engine_argument_that_vllm_does_not_take_is_named(engine: dict[str, Any], message: str) -> None:
    assert message in refusal({"engine": engine})


@pytest.mark.parametrize(
    ("vllm", "message"),
    [
        ({"tool_parser": "x"}, 'http.vllm.tool_parser = "x" is not a known key: did you mean'),
        ({"max_model_len": 1}, "did you mean engine.max_model_len?"),
        (
            {"enable_auto_tool_choice": True},
            "http.vllm.enable_auto_tool_choice = true is not valid: expected what vLLM takes (Error: --",
        ),
        (
            {"enable_auto_tool_choice": True, "tool_call_parser": "hermez"},
            'http.vllm.tool_call_parser = "hermez" is not valid: expected what vLLM takes (invalid tool call',
        ),
        ({"chat_template": "/no/such"}, 'http.vllm.chat_template = "/no/such" is not valid: expected what'),
        (
            {"tool_parser_plugin": "/no/such.py", "tool_call_parser": "x", "enable_auto_tool_choice": True},
            'http.vllm.tool_call_parser = "x" is not valid',
        ),
        (
            {"chat_template_content_format": "loud"},
            'http.vllm.chat_template_content_format = "loud" is not valid: expected one of',
        ),
        (
            {"uvicorn_log_level": "info"},
            'http.vllm.uvicorn_log_level = "info" cannot be set: set logging.level.',
        ),
        ({"port": 1}, "http.vllm.port = 1 cannot be set: set http.port."),
    ],
)
def test_a_server_argument_that_vllm_does_not_take_is_named(vllm: dict[str, Any], message: str) -> None:
    assert message in refusal({"http": {"vllm": vllm}})


def test_a_reasoning_parser_that_there_is_not_is_named() -> None:
    message = refusal({"engine": {"reasoning_parser": "nope"}})
    assert 'engine.reasoning_parser = "nope" is not valid: expected what vLLM takes (invalid' in message


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("model", "m", "set model.path"),
        ("served_model_name", "m", "set model.served_name"),
        ("scheduling-policy", "fcfs", 'it is "priority", which [priorities] needs'),
        ("data_parallel_size", 2, "set instances.count"),
        ("data_parallel_backend", "ray", "set instances.count"),
        ("distributed_executor_backend", "ray", "llumnix chooses it"),
        ("prefix_caching_hash_algo", "xxhash", "block hashes must agree between instances"),
        ("mm_processor_cache_gb", 4, "an image seen by one instance"),
        ("disable_log_stats", True, "the scheduler and /metrics live on these statistics"),
        ("api_server_count", 2, "set http.api_servers"),
        ("worker_cls", "x.Y", "llumnix needs this hook"),
    ],
)
def test_what_llumnix_owns_cannot_be_set_and_the_reason_is_given(name: str, value: object, why: str) -> None:
    message = refusal({"engine": {name: value}})
    assert f"engine.{name.replace('-', '_')} = " in message
    assert "cannot be set" in message
    assert why in message


def test_every_owned_argument_is_one_that_vllm_has() -> None:
    names = set(vars(server_namespace(parse_config({}), "/"))) | {"model_tag", "help"}
    assert set(_OWNED) - names == set()


def test_the_arguments_that_llumnix_sets_cannot_be_overridden() -> None:
    plain = vars(server_namespace(parse_config({}), "/"))
    for name in ("model", "scheduling_policy", "disable_log_stats", "host", "port", "api_key", "ssl_keyfile"):
        assert name in plain
        assert owner(name) is not None


def test_a_refused_secret_is_not_shown() -> None:
    assert "hush" not in refusal({"http": {"vllm": {"api_key": "hush"}}})


# Memory


@pytest.fixture
def eight_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: (8 * GIB, 6 * GIB))
    monkeypatch.setattr(memory, "uses_gpus", lambda: False)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


def memory_refusal(document: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        memory.check_memory(parse_config(document))
    return str(caught.value)


@pytest.mark.usefixtures("eight_gib")
def test_kv_caches_that_fit_are_let_through() -> None:
    memory.check_memory(parse_config({"engine": {"kv_cache_memory_bytes": "3G"}}))


@pytest.mark.usefixtures("eight_gib")
def test_kv_caches_that_do_not_fit_together_are_refused_with_the_most_that_would() -> None:
    assert memory_refusal({"engine": {"kv_cache_memory_bytes": "4G"}}) == (
        'engine.kv_cache_memory_bytes = "4G" is not valid: expected at most 3221225472 (bytes), as 2 KV '
        "caches must fit into 6.0 GiB of available memory."
    )


@pytest.mark.usefixtures("eight_gib")
def test_every_worker_of_an_instance_has_a_kv_cache_of_its_own() -> None:
    engine = {"kv_cache_memory_bytes": "2G", "tensor_parallel_size": 2}
    assert "as 4 KV caches must fit" in memory_refusal({"engine": engine})


@pytest.mark.usefixtures("eight_gib")
def test_without_a_size_the_share_of_the_machine_that_each_instance_takes_is_refused() -> None:
    message = memory_refusal({})
    assert message.startswith(
        "engine.kv_cache_memory_bytes is missing: expected the size of one KV cache, at most "
    )
    assert "2 of 0.92 (engine.gpu_memory_utilization) of 8.0 GiB" in message
    memory.check_memory(parse_config({"engine": {"gpu_memory_utilization": 0.3}}))


@pytest.mark.usefixtures("eight_gib")
def test_where_other_nodes_can_join_only_one_instance_must_fit_here() -> None:
    document = {"ray": {"node_ip": "10.0.0.1"}, "engine": {"kv_cache_memory_bytes": "5G"}}
    memory.check_memory(parse_config(document))


@pytest.mark.usefixtures("eight_gib")
def test_a_variable_that_would_replace_the_size_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    assert "VLLM_CPU_KVCACHE_SPACE = 4 in the environment" in memory_refusal(
        {"engine": {"kv_cache_memory_bytes": "1G"}}
    )


@pytest.mark.parametrize(
    "size", [1024, "1024", "16M", "16m", "1.5k", " 2G ", "3t", "1.5K", "1e9", "much", True]
)
def test_a_size_is_read_as_vllm_reads_it(size: object) -> None:
    config = parse_config({"engine": {"kv_cache_memory_bytes": size}})
    try:
        expected = engine_args(config, model="/").kv_cache_memory_bytes
    except ConfigError:
        expected = None
    assert memory.num_bytes(size) == expected


def test_the_share_of_the_machine_taken_without_a_size_is_vllms() -> None:
    assert engine_args(parse_config({}), model="/").gpu_memory_utilization == memory.DEFAULT_FRACTION


def test_the_machines_available_memory_is_part_of_its_total() -> None:
    total, available = memory.machine_memory()
    assert 0 < available <= total
