"""What an API server process is started with; importable without vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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

    @property
    def metrics_dir(self) -> str:
        """Where all API servers of a run leave their metrics, and each reads those of all."""
        return str(Path(self.endpoints.private_dir) / "metrics")
