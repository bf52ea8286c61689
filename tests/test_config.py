"""The configuration: what a file means, and what an operator is told when it is wrong."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from llumnix.config import (
    Config,
    check_files,
    check_model,
    check_node_ip,
    check_port,
    check_ports,
    effective,
    hold_port,
    load_config,
    parse_config,
    to_toml,
)
from llumnix.config.cluster import TEMP_DIR_MAX_BYTES
from llumnix.config.messages import MASK
from llumnix.config.reference import reference
from llumnix.config.toml import dumps
from llumnix.core.load import Headroom
from llumnix.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"
EXAMPLES = ["quickstart.toml", "gpu-single-node.toml", "multi-node.toml", "reference.toml"]


def error_of(document: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(document)
    return str(caught.value)


def keys_of(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{name}.")


# What a file means


def test_a_file_that_says_nothing_gives_the_defaults_of_the_design() -> None:
    config = parse_config({})
    assert (config.model.path, config.instances.count, config.scheduler.policy) == (
        "builtin:tiny",
        2,
        "llumnix+",
    )
    assert (config.http.host, config.http.port, config.admin.port) == ("127.0.0.1", 8000, 8001)
    assert config.cluster.state_dir == Path("~/.local/state/llumnix").expanduser()
    assert {n: (c.engine_priority, c.headroom) for n, c in config.priorities.items()} == {
        "high": (-10, Headroom(target_load_tokens=1600)),
        "normal": (0, Headroom()),
    }
    assert config.default_priority == "normal"


def test_the_scheduler_is_told_what_the_file_says() -> None:
    document = {
        "instances": {"count": 3, "min": 2, "max": 5},
        "scheduler": {
            "policy": "llumnix",
            "llumnix": {"migration_threshold": 10.0},
            "llumnix+": {"overtake_s": 2},
        },
        "priorities": {
            "first": {"engine_priority": -1, "headroom_tokens": 1600},
            "rest": {"engine_priority": 0},
        },
        "autoscale": {"enabled": True, "hold_s": 7},
    }
    settings = parse_config(document).scheduling
    assert (settings.policy, settings.llumnix.migration_threshold) == ("llumnix", 10)
    assert settings.llumnix_plus.overtake_s == 2
    assert settings.headroom == {-1: Headroom(1600), 0: Headroom()}
    scaling = settings.scaling
    assert (scaling.enabled, scaling.min_instances, scaling.max_instances, scaling.hold_s) == (True, 2, 5, 7)


def test_the_reference_file_is_the_one_generated_from_the_models() -> None:
    assert (CONFIGS / "reference.toml").read_text() == reference()


def test_the_reference_file_gives_the_defaults() -> None:
    assert load_config(CONFIGS / "reference.toml") == parse_config({})


def reference_with_examples() -> dict[str, Any]:
    """The reference file with its commented examples put in force."""
    text = re.sub(r"^# (\S+ = .*)$", r"\1", (CONFIGS / "reference.toml").read_text(), flags=re.M)
    return tomli.loads(text.replace("api_keys = []\n", "").replace("\ntokens = []\n", "\n"))


def test_the_reference_file_names_every_key() -> None:
    every_key = set(keys_of(effective(parse_config({}), mask_secrets=False)))
    assert every_key - set(keys_of(reference_with_examples())) == set()


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_file_loads(name: str) -> None:
    assert load_config(CONFIGS / name).instances.count >= 1


def test_every_example_in_the_reference_file_is_a_valid_value() -> None:
    document = reference_with_examples()
    del document["scheduler"]["record"]
    config = parse_config(document)
    assert config.http.max_queued == 1024
    assert config.http.vllm["tool_call_parser"] == "hermes"
    assert config.http.api_keys[0].max_priority == "high"


def test_every_key_is_documented() -> None:
    def walk(model: Any) -> Iterator[tuple[str, Any]]:
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field
            if hasattr(field.annotation, "model_fields"):
                yield from walk(field.annotation)

    assert [name for name, field in walk(Config) if not field.description] == []


def test_sections_are_frozen() -> None:
    config = parse_config({})
    with pytest.raises(ValueError, match="frozen"):
        config.instances.count = 3  # type: ignore[misc]


def test_min_and_max_instances_default_to_count() -> None:
    config = parse_config({"instances": {"count": 5}})
    assert (config.instances.min, config.instances.max) == (5, 5)


def test_dashes_in_engine_names_are_read_as_underscores() -> None:
    config = parse_config({"engine": {"max-model-len": 4096, "compilation_config": {"mode": 3}}})
    assert config.engine_options == {"max_model_len": 4096, "compilation_config": {"mode": 3}}


def test_an_instance_asks_for_as_many_gpus_as_it_has_workers() -> None:
    config = parse_config({"engine": {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}})
    assert (config.world_size, config.gpus_per_instance) == (8, 8)
    assert parse_config({"instances": {"gpus_per_instance": 0.5}}).gpus_per_instance == 0.5


@pytest.mark.parametrize(
    ("document", "transport"),
    [
        ({}, "ipc"),
        ({"ray": {"node_ip": "10.0.0.1"}}, "tcp"),
        ({"cluster": {"transport": "tcp"}}, "tcp"),
    ],
)
def test_transport_follows_from_who_can_join(document: dict[str, Any], transport: str) -> None:
    assert parse_config(document).transport == transport


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"path": "builtin:tiny"}, "tiny"),
        ({"path": "org/model"}, "org/model"),
        ({"path": "org/model", "served_name": "m"}, "m"),
    ],
)
def test_served_name_defaults_to_the_models_own(model: dict[str, Any], name: str) -> None:
    assert parse_config({"model": model}).served_name == name


def test_clusters_with_different_state_directories_share_no_names() -> None:
    one, other = (parse_config({"cluster": {"state_dir": f"/s/{n}"}}) for n in "ab")
    assert one.ray_namespace != other.ray_namespace
    assert parse_config({"cluster": {"state_dir": "/s/a"}}).ray_namespace == one.ray_namespace


# What an operator is told


def test_a_key_in_the_middle_of_a_word_is_suggested_the_right_one() -> None:
    assert error_of({"instances": {"cuont": 1}}) == (
        "instances.cuont = 1 is not a known key: did you mean instances.count?"
    )


def test_a_key_in_the_wrong_table_is_told_where_it_belongs() -> None:
    assert "did you mean scheduler.policy?" in error_of({"cluster": {"policy": "load"}})


def test_an_unknown_table_is_suggested_the_right_one() -> None:
    assert error_of({"instance": {"count": 1}}).endswith("did you mean instances?")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"instances": {"count": "two"}}, 'instances.count = "two" is not valid: expected a whole number.'),
        ({"instances": {"count": 2.0}}, "instances.count = 2.0 is not valid: expected a whole number."),
        ({"instances": {"count": True}}, "instances.count = true is not valid: expected a whole number."),
        ({"instances": {"count": 0}}, "instances.count = 0 is not valid: expected a number of at least 1."),
        ({"instances": 3}, "instances = 3 is not valid: expected a table."),
        ({"http": {"port": 70000}}, "http.port = 70000 is not valid: expected a number of at most 65535."),
        ({"http": {"api_servers": "4"}}, 'http.api_servers = "4" is not valid: expected a whole number.'),
        ({"ray": {"dashboard": 1}}, "ray.dashboard = 1 is not valid: expected true or false."),
        ({"migration": {"timeout_s": 0}}, "migration.timeout_s = 0 is not valid: expected a number above 0."),
        (
            {"scheduler": {"interval_s": float("inf")}},
            "scheduler.interval_s = inf is not valid: expected a finite",
        ),
        (
            {"logging": {"level": "loud"}},
            "logging.level = \"loud\" is not valid: expected one of 'debug', 'info'",
        ),
        ({"cluster": {"name": "a b"}}, 'cluster.name = "a b" is not valid: expected 1 to 32 letters'),
        (
            {"cluster": {"state_dir": ""}},
            'cluster.state_dir = "" is not valid: expected a path that is not empty',
        ),
        (
            {"ray": {"address": "nowhere"}},
            'ray.address = "nowhere" is not valid: expected one of "local", "auto"',
        ),
        *(
            ({"ray": {"node_ip": ip}}, f'ray.node_ip = "{ip}" is not valid: expected the IPv4 address')
            for ip in ("0.0.0.0", "::1", "127.0.0.2", "localhost")
        ),
        ({"ray": {"temp_dir": "/" + "x" * TEMP_DIR_MAX_BYTES}}, "expected at most 21 bytes"),
        (
            {"engine": {"tensor_parallel_size": "2"}},
            'engine.tensor_parallel_size = "2" is not valid: expected a whole',
        ),
        (
            {"engine": {"max-model-len": 1, "max_model_len": 2}},
            "expected each key once, but max_model_len is there",
        ),
        ({"engine": {"seed": float("nan")}}, "engine.seed = nan is not valid: expected a finite number."),
        ({"admin": {"tokens": [{"name": "ops"}]}}, "admin.tokens[0].token_file is missing"),
        (
            {"scheduler": {"llumnix+": {"migrate_in": 1}}},
            'did you mean scheduler."llumnix+".migrate_in_threshold?',
        ),
        ({"priorities": {"a b": {"engine_priority": 0}}}, 'priorities (a name in it) = "a b" is not valid'),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_was_expected(
    document: dict[str, Any], message: str
) -> None:
    assert message in error_of(document)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"instances": {"count": 2, "min": 3}},
            "instances.min = 3 is not valid: expected at most instances.count (2)",
        ),
        (
            {"instances": {"count": 2, "max": 1}},
            "instances.max = 1 is not valid: expected at least instances.count",
        ),
        ({"instances": {"gpus_per_instance": 1.5}}, "expected a whole number, or one below 1"),
        (
            {"instances": {"step_timeout_s": 5}},
            "instances.step_timeout_s = 5.0 is not valid: expected at least",
        ),
        ({"http": {"port": 8001}}, "admin.port = 8001 is not valid: expected another port than http.port."),
        (
            {"http": {"tls_cert": "/c"}},
            "http.tls_key is missing: expected a private key, as http.tls_cert is set.",
        ),
        (
            {"http": {"tls_key": "/k"}},
            "http.tls_cert is missing: expected a certificate, as http.tls_key is set.",
        ),
        (
            {"ray": {"address": "10.0.0.1:6379"}},
            'ray.node_ip = "127.0.0.1" is not valid: expected this machine\'s',
        ),
        (
            {"cluster": {"transport": "ipc"}, "ray": {"node_ip": "10.0.0.1"}},
            'cluster.transport = "ipc" is not valid',
        ),
        ({"priorities": {"low": {"engine_priority": 5}}}, "expected a class of engine_priority 0"),
        (
            {"priorities": {"normal": {"engine_priority": 0}, "high": {"engine_priority": -1}}},
            "priorities.high.engine_priority = -1 is not valid: expected more than that of normal (0)",
        ),
        (
            {"priorities": {"normal": {"engine_priority": 0, "headroom_tokens": 5, "target_load_tokens": 9}}},
            "priorities.normal.target_load_tokens = 9 is not valid: expected 0, as headroom_tokens (5)",
        ),
        ({"autoscale": {"scale_up_freeness": 70.0}}, "autoscale.scale_down_freeness = 60.0 is not valid"),
        (
            {"scheduler": {"llumnix+": {"migrate_in_threshold": 1.0}}},
            'scheduler."llumnix+".migrate_in_threshold = 1.0',
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(document: dict[str, Any], message: str) -> None:
    assert message in error_of(document)


@pytest.mark.parametrize("name", ["a100", 3, "", "nowhere.json"])
def test_a_hardware_profile_that_is_unknown_is_refused(name: object) -> None:
    message = error_of({"engine": {"simulated": name}})
    assert message.startswith("engine.simulated = ") and "one of a10-llama-7b, " in message


def test_a_simulated_instance_is_whole() -> None:
    message = error_of({"engine": {"simulated": "a10-llama-7b", "tensor_parallel_size": 2}})
    assert message == (
        "engine.tensor_parallel_size = 2 is not valid: "
        "expected 1, as a hardware profile is of a whole instance."
    )


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"none\.toml cannot be read \(No such file or directory\): expected a TOML"
    ):
        load_config(tmp_path / "none.toml")


def test_a_syntax_error_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[instances]\ncount = = 2\n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML: .*line 2"):
        load_config(path)


def test_a_file_that_is_not_text_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 5"):
        load_config(path)


SCALARS = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.lists(st.integers(), max_size=2)
)
VALUES = st.one_of(SCALARS, st.dictionaries(st.text(max_size=8), SCALARS, max_size=2))
KEYS = st.sampled_from(
    [key for key in keys_of(effective(parse_config({}), mask_secrets=False)) if "+" not in key]
)


@given(KEYS, VALUES)
def test_whatever_a_key_is_set_to_the_answer_is_a_configuration_or_one_sentence_naming_a_key(
    key: str, value: Any
) -> None:
    document: dict[str, Any] = {}
    *tables, name = key.split(".")
    inner = document
    for table in tables:
        inner = inner.setdefault(table, {})
    inner[name] = value
    try:
        parse_config(document)
        return
    except ConfigError as error:
        message = str(error)
    assert key.split(".")[0] in message
    assert "\n" not in message
    assert message.endswith((".", "?"))


# Who is let in


def test_off_loopback_the_endpoint_needs_keys_or_an_explicit_word() -> None:
    assert error_of({"http": {"host": "0.0.0.0"}}) == (
        'http.host = "0.0.0.0" is not valid: expected a loopback address, or http.api_keys, or '
        "http.allow_anonymous = true."
    )
    key = {"name": "a", "key": "k"}
    assert parse_config({"http": {"host": "0.0.0.0", "api_keys": [key]}}).http.host == "0.0.0.0"
    assert parse_config({"http": {"host": "0.0.0.0", "allow_anonymous": True}}).http.allow_anonymous


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_loopback_the_endpoint_needs_no_keys(host: str) -> None:
    assert parse_config({"http": {"host": host}}).http.host == host


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "a"}, "http.api_keys (a): key is missing: expected either key or key_file, and not both."),
        ({"name": "a", "key": "k", "key_file": "/f"}, "expected either key or key_file, and not both."),
        (
            {"name": "a", "key": "k", "priority": "urgent"},
            'http.api_keys (a): priority = "urgent" is not valid',
        ),
        (
            {"name": "a", "key": "k", "max_priority": "x"},
            'http.api_keys (a): max_priority = "x" is not valid',
        ),
        (
            {"name": "a", "key": "k", "priority": "high", "max_priority": "normal"},
            "expected high or a class above",
        ),
    ],
)
def test_an_api_key_names_classes_that_there_are(entry: dict[str, Any], message: str) -> None:
    assert message in error_of({"http": {"api_keys": [entry]}})


def test_two_api_keys_share_neither_name_nor_secret() -> None:
    same_name = [{"name": "a", "key": "1"}, {"name": "a", "key": "2"}]
    assert 'http.api_keys: name = "a" is not valid' in error_of({"http": {"api_keys": same_name}})
    same_key = [{"name": "a", "key": "hush"}, {"name": "b", "key": "hush"}]
    message = error_of({"http": {"api_keys": same_key}})
    assert "expected another key than that of a" in message
    assert "hush" not in message


def test_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    secret = tmp_path / "team.key"
    secret.write_text("hush\n")
    config = parse_config({"http": {"api_keys": [{"name": "a", "key_file": str(secret)}]}})
    assert config.http.api_keys[0].secret() == "hush"
    check_files(config)


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_secret_file_that_gives_none_is_refused(tmp_path: Path, content: str | None) -> None:
    secret = tmp_path / "team.key"
    if content is not None:
        secret.write_text(content)
    config = parse_config({"admin": {"tokens": [{"name": "ops", "token_file": str(secret)}]}})
    with pytest.raises(
        ConfigError, match=r"admin\.tokens \(ops\): token_file = .*team\.key.* is not valid: expected a"
    ):
        check_files(config)


def test_a_certificate_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("k")
    http = {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    with pytest.raises(ConfigError, match=r"http\.tls_cert = .*cert\.pem.* expected a readable file"):
        check_files(parse_config({"http": http}))


def self_signed(directory: Path, name: str, *options: str) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}.pem", directory / f"{name}-key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate), *options]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def tls_refusal(certificate: Path, key: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check_files(parse_config({"http": {"tls_cert": str(certificate), "tls_key": str(key)}}))
    return str(caught.value)


def test_a_certificate_that_no_server_can_use_is_refused_with_its_key(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, "one", "-nodes")
    _, other = self_signed(tmp_path, "other", "-nodes")
    _, encrypted = self_signed(tmp_path, "encrypted", "-passout", "pass:hush")
    check_files(parse_config({"http": {"tls_cert": str(certificate), "tls_key": str(key)}}))
    assert re.match(r"http\.tls_cert = .* is not valid: expected a certificate", tls_refusal(key, key))
    for wrong in (certificate, other, encrypted):
        refusal = tls_refusal(certificate, wrong)
        assert re.match(r"http\.tls_key = .* is not valid: expected the private key of", refusal)


# What is shown


SECRETS = {
    "http": {"api_keys": [{"name": "team", "key": "hush-1"}], "vllm": {"api_key": "hush-2"}},
    "engine": {"hf_token": "hush-3", "kv_transfer_config": {"extra": {"access_key": "hush-4", "port": 1}}},
}


def test_secrets_are_masked_wherever_the_configuration_is_shown() -> None:
    config = parse_config(SECRETS)
    for shown in (to_toml(config), json.dumps(effective(config)), repr(config.http)):
        assert "hush-1" not in shown
    assert "hush" not in to_toml(config) + json.dumps(effective(config))
    assert effective(config)["http"]["api_keys"][0]["key"] == MASK
    assert effective(config)["engine"]["kv_transfer_config"]["extra"] == {"access_key": MASK, "port": 1}


def test_secrets_are_there_for_whoever_asks_for_them() -> None:
    shown = effective(parse_config(SECRETS), mask_secrets=False)
    assert shown["http"]["api_keys"][0]["key"] == "hush-1"
    assert shown["engine"]["hf_token"] == "hush-3"


@pytest.mark.parametrize(
    "document",
    [
        {"http": {"api_keys": ["hush"]}},
        {"http": {"api_keys": "hush"}},
        {"http": {"api_keys": [{"name": "a", "kye": "hush"}]}},
        {"http": {"api_keys": [{"name": "a", "key": ["hush"]}]}},
        {"http": {"api_key": "hush"}},
        {"admin": {"token": "hush"}},
        {"engine": {"hf_token": "hush", "hf-token": "hush"}},
    ],
)
def test_an_error_shows_no_secret(document: dict[str, Any]) -> None:
    assert "hush" not in error_of(document)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_effective_configuration_loads_again_as_the_same(name: str, tmp_path: Path) -> None:
    config = load_config(CONFIGS / name)
    path = tmp_path / "effective.toml"
    path.write_text(to_toml(config, mask_secrets=False))
    again = load_config(path)
    assert effective(again, mask_secrets=False) == effective(config, mask_secrets=False)
    assert json.loads(json.dumps(effective(config))) == effective(config)


LEAVES = st.one_of(
    st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text(max_size=20)
)
INLINE = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
TABLES = st.recursive(
    st.dictionaries(st.text(max_size=8), INLINE, max_size=4),
    lambda inner: st.dictionaries(st.text(max_size=8), st.one_of(INLINE, inner), max_size=4),
    max_leaves=8,
)


@given(TABLES)
def test_what_is_written_as_toml_reads_back_the_same(table: dict[str, Any]) -> None:
    assert tomli.loads(dumps(table)) == table


# What is asked of this machine


@pytest.fixture
def listening_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("section", ["http", "admin", "ray"])
def test_a_port_in_use_is_named_with_its_key(section: str, listening_port: int) -> None:
    document: dict[str, Any] = {"http": {"port": free_port()}, "admin": {"port": free_port()}}
    document.setdefault(section, {})["port"] = listening_port
    with pytest.raises(ConfigError) as caught:
        check_ports(parse_config(document))
    assert str(caught.value) == (
        f"{section}.port = {listening_port} is not valid: expected a free port, but something listens at "
        f"127.0.0.1:{listening_port}."
    )


def test_free_ports_are_still_free_after_the_check() -> None:
    config = parse_config({"http": {"port": free_port()}, "admin": {"port": free_port()}})
    check_ports(config)
    check_ports(config)


def test_a_node_address_of_another_machine_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r'ray\.node_ip = "192\.0\.2\.1" is not valid: expected an address of this machine'
    ):
        check_node_ip(parse_config({"ray": {"node_ip": "192.0.2.1"}}))


def test_a_held_port_is_free_for_our_api_servers_and_nobody_else() -> None:
    port = free_port()
    holder = hold_port("127.0.0.1", port)
    assert holder is not None
    with holder:
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"http.port = {port} is not valid: expected a free port"):
                check_port("http", "127.0.0.1", port)
        with socket.create_server(("127.0.0.1", port), reuse_port=True) as server:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            server.accept()[0].close()
    check_port("http", "127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(
        ConfigError, match=rf'admin\.host = "{host}" is not valid: expected an address of this machine'
    ):
        check_port("admin", host, free_port())


@pytest.mark.parametrize("path", ["/no/such/model", "./no-such-model", "~/no-such-model"])
def test_a_model_directory_that_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(
        ConfigError, match=rf'model\.path = "{re.escape(path)}" is not valid: expected a directory'
    ):
        check_model(parse_config({"model": {"path": path}}))


def test_a_builtin_model_that_there_is_not_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r'model\.path = "builtin:huge" is not valid: expected builtin:tiny'
    ):
        check_model(parse_config({"model": {"path": "builtin:huge"}}))


@pytest.mark.parametrize("path", ["builtin:tiny", "org/model", "s3://bucket/model", "/"])
def test_a_model_that_may_be_there_is_left_to_vllm(path: str) -> None:
    check_model(parse_config({"model": {"path": path}}))


def test_reading_a_configuration_imports_neither_vllm_nor_torch_nor_ray() -> None:
    code = (
        "import sys, llumnix.config, llumnix.cli; print(sorted({'vllm', 'torch', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
