"""The configuration in force, to be shown: what was left out filled in, secrets masked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from llumnix.config.messages import MASK, masked
from llumnix.config.root import Config
from llumnix.config.toml import dumps


def effective(config: Config, mask_secrets: bool = True) -> dict[str, Any]:
    """Tables and keys as in the file, in JSON's types; what is derived where it was left out is filled in."""
    document: dict[str, Any] = _plain(config.model_dump(by_alias=True), mask_secrets)
    document["cluster"]["transport"] = config.transport
    document["ray"]["temp_dir"] = str(config.ray.temp_dir or "/tmp")  # each run has its own below
    document["model"]["served_name"] = config.served_name
    if mask_secrets:
        # vLLM's arguments are not typed here: their names tell which are secret.
        document["engine"] = masked(document["engine"])
        document["http"]["vllm"] = masked(document["http"]["vllm"])
    return document


def to_toml(config: Config, mask_secrets: bool = True) -> str:
    """The effective configuration as a TOML file."""
    return dumps(effective(config, mask_secrets))


def _plain(value: Any, mask_secrets: bool) -> Any:
    if isinstance(value, SecretStr):
        return MASK if mask_secrets else value.get_secret_value()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(item, mask_secrets) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, mask_secrets) for item in value]
    return value
