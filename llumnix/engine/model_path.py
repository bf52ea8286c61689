"""Where the model lies that vLLM is given; importable without vLLM."""

from __future__ import annotations

from pathlib import Path

from llumnix.config import Config, check_model


def resolve_model(config: Config) -> str:
    """The directory or hub id that vLLM is given; builds a built-in model where it is not there yet."""
    check_model(config)
    if config.builtin_model is None:
        return resolved_path(config)
    from llumnix.engine import tiny_model

    return str(tiny_model.build(config.cluster.state_dir))


def resolved_path(config: Config) -> str:
    """model.path with ~ written out and a local path made absolute; a hub id as it is."""
    path = Path(config.model.path).expanduser()
    return str(path.absolute()) if path.exists() else config.model.path
