"""Which engine-wide calls leave state behind that an instance joining later must take on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def persistent_key(method: str, args: Sequence[Any]) -> str | None:
    """The name of the state that a call sets, None if it sets none."""
    if method == "add_lora":
        return f"lora:{args[0].lora_int_id}"
    if method == "pin_lora":
        return f"pin:{args[0]}"
    if method == "sleep":
        return "sleep"
    if method == "pause_scheduler":
        return "pause"
    if method == "set_weight_version":
        return "weight_version"
    return None


def forget_key(method: str, args: Sequence[Any]) -> tuple[str, ...]:
    """The names of the states that a call undoes."""
    if method == "remove_lora":
        return (f"lora:{args[0]}", f"pin:{args[0]}")
    if method == "wake_up" and (not args or args[0] is None):
        return ("sleep", "pause")
    if method == "resume_scheduler":
        return ("pause",)
    return ()
