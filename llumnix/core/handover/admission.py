"""Whether a request may come here, and if not, why: one sentence for operators."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from llumnix.core.handover.messages import Prepare

Fingerprint = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Room:
    """What the engine has to give at this moment."""

    num_free_blocks: int
    num_free_slots: int
    """Places in the batch, less those reserved."""
    adapters: Collection[str]


def mismatch(theirs: Fingerprint, ours: Fingerprint) -> str | None:
    """The first field in which the two engines differ."""
    of_source, of_target = dict(theirs), dict(ours)
    for name in sorted(of_source.keys() | of_target.keys()):
        there, here = of_source.get(name, "unknown"), of_target.get(name, "unknown")
        if there != here:
            return f"the engines differ in {name}: {there} at the source, {here} at the target"
    return None


def no_room(prepare: Prepare, num_cached_blocks: int, room: Room) -> str | None:
    """Asked by the engine before it reserves; `num_cached_blocks` are held already and need no room."""
    if prepare.adapter and prepare.adapter not in room.adapters:
        return f"the target has no adapter {prepare.adapter!r}"
    if room.num_free_slots < 1:
        return "the target has no free place in its batch"
    num_missing = prepare.num_blocks - num_cached_blocks
    if num_missing > room.num_free_blocks:
        return f"the target has {room.num_free_blocks} free blocks, the request needs {num_missing}"
    return None
