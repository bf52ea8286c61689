"""Tables that hold vLLM's own arguments; their names are checked where vLLM may be imported."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from llumnix.config.messages import dotted, wrong


def vllm_table(table: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A validator that writes names as in Python (max_model_len) and admits only what JSON can carry."""

    def normalise(value: Mapping[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, item in value.items():
            key = name.replace("-", "_")
            if key in result:
                raise wrong(f"{table}.{name}", item, f"each key once, but {key} is there twice")
            _refuse_what_json_lacks(dotted((*table.split("."), name)), item)
            result[key] = item
        return result

    return normalise


def _refuse_what_json_lacks(key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_what_json_lacks(f"{key}.{dotted((name,))}", item)
    elif isinstance(value, list):
        for item in value:
            _refuse_what_json_lacks(key, item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise wrong(key, value, "a finite number")
    elif not isinstance(value, bool | int | float | str):
        raise wrong(key, value, "a text, number, true or false, list or table")
