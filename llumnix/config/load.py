"""Reading and checking a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from llumnix.config.messages import explain, not_yet
from llumnix.config.root import Config
from llumnix.errors import ConfigError


def load_config(path: Path) -> Config:
    """The configuration in a TOML file; raises ConfigError, whose text is one sentence for the operator."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path} cannot be read ({reason}): expected a TOML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 at byte {error.start}: expected a TOML file.") from None
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None
    return parse_config(document)


def parse_config(document: Mapping[str, Any]) -> Config:
    """The configuration of a document as tomli reads it; raises ConfigError."""
    try:
        config = Config.model_validate(dict(document))
    except ValidationError as error:
        raise explain(error, Config) from None
    _refuse_what_is_not_built(config)
    return config


def _refuse_what_is_not_built(config: Config) -> None:
    """A setting that would silently do nothing is worse than one that is refused."""
    if config.autoscale.enabled:
        raise not_yet("autoscale.enabled", True)
    if config.simulated is not None:
        raise not_yet("engine.simulated", config.simulated)
    if config.scheduler.record is not None:
        raise not_yet("scheduler.record", str(config.scheduler.record))
