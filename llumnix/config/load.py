"""Reading and checking a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from llumnix.config.messages import explain
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
        return Config.model_validate(dict(document))
    except ValidationError as error:
        raise explain(error, Config) from None
