"""What differs between two configurations, and which of it a running cluster can take on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from llumnix.config.effective import effective
from llumnix.config.messages import explain
from llumnix.config.root import Config

AT_RUN_TIME = (
    "autoscale",
    "http.drain_timeout_s",
    "instances.heartbeat_timeout_s",
    "instances.max",
    "instances.min",
    "instances.restart_backoff_s",
    "instances.restart_limit",
    "instances.start_timeout_s",
    "instances.step_timeout_s",
    "logging.level",
    "scheduler.interval_s",
    "scheduler.llumnix+.migrate_in_threshold",
    "scheduler.llumnix+.migrate_out_threshold",
    "scheduler.llumnix.migration_threshold",
    "scheduler.rescheduling",
)
"""Keys and tables that llumnixd takes on while it runs (SIGHUP). All are read by llumnixd alone."""

_AT_START_OF_LLUMNIXD = ("admin", "instances.count", "logging", "scheduler.record")
"""Read by llumnixd alone too, but only when it starts."""


def digests(config: Config) -> dict[str, str]:
    """A digest of every key's value: what changed can be told later without keeping a secret."""
    values = _flat("", effective(config, mask_secrets=False))
    values["http.api_keys"] = [values["http.api_keys"], [key.secret() for key in config.http.api_keys]]
    return {key: _digest(value) for key, value in values.items()}


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The keys that differ, sorted."""
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def bound_to_processes(keys: list[str]) -> list[str]:
    """Those keys that instances and API servers were started with: another value needs other processes."""
    return [key for key in keys if not _is_among(key, AT_RUN_TIME + _AT_START_OF_LLUMNIXD)]


def reloaded(running: Config, wanted: Config) -> tuple[Config, list[str], list[str]]:
    """`running` with what of `wanted` can change at run time; the keys taken on, and those that were not.

    Raises ConfigError where the two do not go together.
    """
    keys = changed(digests(running), digests(wanted))
    taken = [key for key in keys if _is_among(key, AT_RUN_TIME)]
    document = running.model_dump(by_alias=True)
    source = wanted.model_dump(by_alias=True)
    for key in taken:
        _copy(source, document, key)
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        raise explain(error, Config) from None
    return config, taken, [key for key in keys if key not in taken]


def _is_among(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _copy(source: dict[str, Any], target: dict[str, Any], key: str) -> None:
    *tables, last = key.split(".")
    for table in tables:
        source, target = source[table], target[table]
    target[last] = source[last]


def _flat(prefix: str, table: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        flat |= _flat(f"{key}.", value) if isinstance(value, Mapping) else {key: value}
    return flat


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
