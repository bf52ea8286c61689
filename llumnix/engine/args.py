"""[engine] and [http.vllm] as vLLM takes them: every key checked by vLLM's own argument parser."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.exceptions import VLLMError
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from llumnix.config.messages import closest, is_secret, show, unknown, wrong
from llumnix.config.preflight import check_model
from llumnix.config.root import Config
from llumnix.engine.migration.worker import CPU_WORKER, EXTENSION
from llumnix.engine.model_path import resolve_model, resolved_path
from llumnix.engine.owned_args import owner
from llumnix.engine.simulated.arguments import default_arguments, fixed_arguments
from llumnix.errors import ConfigError

_MAX_DETAIL_CHARS = 300
# vLLM looks a model up by its name only when it is no directory: nothing is looked up for a mere check.
_SOME_DIRECTORY = "/"
_ENGINE_FIELDS = {f.name: f for f in dataclasses.fields(AsyncEngineArgs) if not f.name.startswith("_")}


class _RefusedError(Exception):
    """vLLM's parser does not take an argument."""


class _Parser(FlexibleArgumentParser):
    """vLLM's parser, raising where the original ends the process."""

    def error(self, message: str) -> NoReturn:
        raise _RefusedError(re.sub(r"^argument \S+: ", "", message))


def check_engine_args(config: Config) -> None:
    """Refuses keys of [engine] and [http.vllm] that vLLM does not take so; raises ConfigError."""
    check_model(config)
    namespace = server_namespace(config, _SOME_DIRECTORY if config.builtin_model else resolved_path(config))
    namespace.structured_outputs_config = _build(namespace).create_structured_outputs_config()
    check_server_args(config, namespace)


def check_server_args(config: Config, namespace: argparse.Namespace) -> None:
    """Refuses arguments with which vLLM's server cannot serve; loads the parsers that they bring along.

    Its structured_outputs_config must name the reasoning parser, as vLLM's makes it.
    """
    # Imported here, as engines have no use for it.
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    try:
        validate_parsed_serve_args(namespace)
        if namespace.tool_parser_plugin:
            ToolParserManager.import_tool_parser(namespace.tool_parser_plugin)
        if namespace.reasoning_parser_plugin:
            ReasoningParserManager.import_reasoning_parser(namespace.reasoning_parser_plugin)
        validate_api_server_args(namespace)
    except (TypeError, ValueError, KeyError, OSError, VLLMError) as error:
        # The text of a KeyError is in quotes.
        raise _refused_by_server(config, str(error.args[0] if type(error) is KeyError else error)) from None


def engine_args(config: Config, model: str | None = None) -> AsyncEngineArgs:
    """vLLM's arguments for every instance and API server; `model` saves resolving model.path again."""
    return _build(server_namespace(config, model))


def vllm_config(config: Config, model: str, usage_context: UsageContext) -> VllmConfig:
    """vLLM's whole configuration, for which it reads the model's; raises ConfigError with vLLM's reason."""
    args = engine_args(config, model)
    try:
        return args.create_engine_config(usage_context=usage_context)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ConfigError(
            f"[engine] does not fit the model {show('path', config.model.path)} (model.path): "
            f"vLLM says: {_one_line(str(error))}."
        ) from error


def server_namespace(config: Config, model: str | None = None) -> argparse.Namespace:
    """The parsed command line that vLLM's OpenAI server would have; it holds secrets: never log it."""
    parser = make_arg_parser(_Parser(prog="llumnix", add_help=False))
    namespace: argparse.Namespace = parser.parse_args([])
    if config.simulated is not None:
        vars(namespace).update(default_arguments(config.simulated))
    actions = {action.dest: action for action in parser._actions}
    for name, value in config.engine_options.items():
        _check_name("engine", name, value, set(_ENGINE_FIELDS), actions)
        setattr(namespace, name, _parse(parser, actions.get(name), f"engine.{name}", name, value))
    for name, value in config.http.vllm.items():
        _check_name("http.vllm", name, value, set(actions) - set(_ENGINE_FIELDS), actions)
        setattr(namespace, name, _parse(parser, actions[name], f"http.vllm.{name}", name, value))
    for name, value in _fixed(config, model or resolve_model(config)).items():
        setattr(namespace, name, value)
    return namespace


def _fixed(config: Config, model: str) -> dict[str, Any]:
    """What llumnix itself sets; owned_args says why for each."""
    tls_cert, tls_key = config.http.tls_cert, config.http.tls_key
    simulated = {} if config.simulated is None else fixed_arguments(config.simulated)
    return {
        "model": model,
        "served_model_name": [config.served_name],
        "scheduling_policy": "priority",
        "prefix_caching_hash_algo": "sha256_cbor",
        "mm_processor_cache_gb": 0.0,
        "disable_log_stats": False,
        "worker_cls": CPU_WORKER if current_platform.is_cpu() else "auto",
        "worker_extension_cls": EXTENSION,
        "distributed_executor_backend": "uni" if config.world_size == 1 else "mp",
        "host": config.http.host,
        "port": config.http.port,
        "api_server_count": config.http.api_servers,
        "ssl_certfile": str(tls_cert) if tls_cert else None,
        "ssl_keyfile": str(tls_key) if tls_key else None,
        "api_key": [entry.secret() for entry in config.http.api_keys] or None,
        **simulated,
    }


def _build(namespace: argparse.Namespace) -> AsyncEngineArgs:
    try:
        built: AsyncEngineArgs = AsyncEngineArgs.from_cli_args(namespace)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ConfigError(f"[engine] is not valid: vLLM says: {_one_line(str(error))}.") from None
    return built


def _refused_by_server(config: Config, said: str) -> ConfigError:
    """The error for what vLLM's server says of its arguments; names the one that it speaks of."""
    told = said.partition(" (chose from")[0]
    candidates = {f"http.vllm.{name}": value for name, value in config.http.vllm.items()}
    candidates |= {f"engine.{n}": v for n, v in config.engine.items() if n.startswith("reasoning_parser")}
    for key, value in candidates.items():
        flag = "--" + key.rpartition(".")[2].replace("_", "-")
        named = [flag, value] if isinstance(value, str) and value else [flag]
        if any(re.search(rf"(?<![\w-]){re.escape(text)}(?![\w-])", told) for text in named):
            return wrong(key, value, f"what vLLM takes ({_one_line(said)})")
    return ConfigError(f"[http.vllm] is not valid: vLLM says: {_one_line(said)}.")


def _check_name(
    table: str, name: str, value: Any, names: set[str], actions: Mapping[str, argparse.Action]
) -> None:
    """Refuses a key that llumnix owns, that belongs into the other table, or that vLLM does not know."""
    if (why := owner(name)) is not None:
        raise ConfigError(f"{table}.{name} = {show(name, value)} cannot be set: {why}.")
    if name in names:
        return
    other, other_names = (
        ("http.vllm", set(actions) - set(_ENGINE_FIELDS))
        if table == "engine"
        else ("engine", set(_ENGINE_FIELDS))
    )
    if name in other_names:
        raise unknown(f"{table}.{name}", value, [f"{other}.{name}"])
    candidates = {n: f"{table}.{n}" for n in names} | {n: f"{other}.{n}" for n in other_names}
    allowed = [n for n in candidates if owner(n) is None]
    raise unknown(f"{table}.{name}", value, [candidates[n] for n in closest(name, allowed)[:1]])


def _parse(parser: _Parser, action: argparse.Action | None, key: str, name: str, value: Any) -> Any:
    """One value as vLLM's command line takes it; raises ConfigError saying what was expected."""
    if action is None:
        return _parse_field(key, name, value)
    if action.nargs == "+" and value == []:
        return []
    try:
        return getattr(parser.parse_args(_words(action, value)), name)
    except _RefusedError as refusal:
        raise wrong(key, value, _expected(action, name, str(refusal))) from None


def _parse_field(key: str, name: str, value: Any) -> Any:
    """A field of vLLM's engine arguments that its command line lacks."""
    try:
        field_type: Any = _ENGINE_FIELDS[name].type
        return TypeAdapter(field_type).validate_python(value)
    except ValidationError as error:
        raise wrong(key, value, f"what vLLM takes ({_one_line(str(error))})") from None


def _words(action: argparse.Action, value: Any) -> list[str]:
    """A TOML value as words of vLLM's command line."""
    is_flag = isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0
    flag = next(o for o in action.option_strings if o.startswith("--"))
    if isinstance(value, bool) and (is_flag or action.nargs == "?"):
        if value:
            return [flag]
        off = "--no-" + flag.removeprefix("--")
        if off in action.option_strings:
            return [off]
    if is_flag or isinstance(value, bool):
        raise _RefusedError("invalid type")
    if action.nargs == "+" or isinstance(action, argparse._AppendAction):
        values = value if isinstance(value, list) else [value]
        words = [json.dumps(v) if isinstance(v, dict | list) else str(v) for v in values]
        if action.nargs == "+":
            return [flag, *words]
        return [f"{flag}={word}" for word in words]
    return [f"{flag}={json.dumps(value) if isinstance(value, dict | list) else value}"]


def _expected(action: argparse.Action, name: str, detail: str) -> str:
    if isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0:
        return "true or false"
    if action.choices:
        return "one of " + ", ".join(str(c) for c in action.choices if c is not None)
    if action.type in (int, float):
        return "a whole number" if action.type is int else "a number"
    return "what vLLM takes" if is_secret(name) else f"what vLLM takes ({_one_line(detail)})"


def _one_line(text: str) -> str:
    text = re.sub(r"For further information visit \S+|^\d+ validation errors? for \w+|\[type=.*\]", "", text)
    line = " ".join(text.split()).removeprefix("Value error, ").rstrip(". ")
    return line if len(line) <= _MAX_DETAIL_CHARS else line[: _MAX_DETAIL_CHARS - 3] + "..."
