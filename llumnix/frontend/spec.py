"""What an API server process is started with; importable without vLLM."""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.config import Config
from llumnix.wire import Endpoints


@dataclass(frozen=True, slots=True)
class ApiServerSpec:
    """One API server's start."""

    config: Config
    index: int
    endpoints: Endpoints
    model: str
    """The resolved directory or hub id."""
