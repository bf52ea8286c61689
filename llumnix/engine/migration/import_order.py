"""What the engine tells its own workers about a request that arrives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ImportOrder:
    """A request as the workers of one instance get it; never leaves that instance."""

    request_id: str
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    num_computed_tokens: int
    mm_features: list[Any]
    sampling_params: Any
    lora_request: Any
