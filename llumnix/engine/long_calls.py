"""Which engine-wide calls may wait, without any CPU, for a disk, a network or a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MAY_WAIT = frozenset(
    {
        "add_lora",
        "checkpoint_prepare",
        "checkpoint_restore",
        "finish_weight_update",
        "init_weight_transfer_engine",
        "reload_weights",
        "save_sharded_state",
        "save_tensorized_model",
        "sleep",
        "start_weight_update",
        "update_weights",
        "wake_up",
    }
)


def may_wait(method: str, args: Sequence[Any]) -> bool:
    """Whether vLLM's method, or the worker's that it has called, loads, stores or moves weights."""
    called = args[0] if method == "collective_rpc" and args else method
    return isinstance(called, str) and called in _MAY_WAIT
