"""Engine-wide state that API servers set on all instances, kept for those that join later."""

from __future__ import annotations

from collections.abc import Mapping

from llumnix.wire import StateOp


class EngineState:
    """The calls to replay, in the order they were first made; opaque bytes of vLLM's."""

    def __init__(self, calls: Mapping[str, tuple[bytes, ...]]) -> None:
        self._calls = dict(calls)
        self._joined_at: dict[int, int] = {}

    def apply(self, op: StateOp) -> None:
        if op.call is None:
            self._calls.pop(op.key, None)
        else:
            self._calls[op.key] = op.call

    def by_key(self) -> dict[str, tuple[bytes, ...]]:
        return dict(self._calls)

    def calls(self) -> tuple[tuple[bytes, ...], ...]:
        return tuple(self._calls.values())

    def joined(self, uid: int, table_version: int) -> None:
        """An instance stands in the table from this version on; before, nobody but us tells it of calls."""
        self._joined_at.setdefault(uid, table_version)

    def left(self, uid: int) -> None:
        self._joined_at.pop(uid, None)

    def missed_by(self, op: StateOp, replayed: set[int]) -> list[int]:
        """Instances that had their replay but were not yet in the table the call was fanned out to."""
        return [uid for uid in replayed if self._joined_at.get(uid, op.table_version + 1) > op.table_version]
