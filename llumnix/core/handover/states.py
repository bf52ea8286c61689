"""States of source, target and owner; the table of transitions stands in the package's docstring."""

from __future__ import annotations

from enum import StrEnum


class SourceState(StrEnum):
    PREPARING = "preparing"  # PREPARE is sent
    COPYING = "copying"  # a stage is under way, the request goes on
    GROWING = "growing"  # GROW is sent, the request goes on
    FREEZING = "freezing"  # out of the batch, tokens may be in flight
    LAST_GROWING = "last_growing"  # frozen, GROW is sent
    LAST_COPYING = "last_copying"  # frozen, the last blocks are under way
    COMMITTING = "committing"  # COMMIT is sent
    CANCELLING = "cancelling"  # over; a copy may still read
    ENDED = "ended"

    @property
    def is_over(self) -> bool:
        """The outcome is known; only a cancelled copy may be left."""
        return self in (SourceState.CANCELLING, SourceState.ENDED)

    @property
    def is_frozen(self) -> bool:
        """The request is out of the batch."""
        return self in _FROZEN

    @property
    def has_open_copy(self) -> bool:
        return self in _COPYING


_FROZEN = frozenset(
    {SourceState.FREEZING, SourceState.LAST_GROWING, SourceState.LAST_COPYING, SourceState.COMMITTING}
)
_COPYING = frozenset({SourceState.COPYING, SourceState.LAST_COPYING, SourceState.CANCELLING})


class TargetState(StrEnum):
    RESERVING = "reserving"  # the engine is asked
    RECEIVING = "receiving"  # ACK is sent
    COMMITTED = "committed"  # COMMIT came, copies may still be under way
    ADOPTING = "adopting"  # the engine is asked; no way back but its own failure
    CANCELLING = "cancelling"  # over; copies may still write, or the engine owes an answer
    ENDED = "ended"

    @property
    def is_over(self) -> bool:
        """The outcome is known; only cancelled copies or an answer of the engine may be left."""
        return self in (TargetState.CANCELLING, TargetState.ENDED)

    @property
    def is_settled(self) -> bool:
        """Neither the source nor time can change the outcome any more."""
        return self.is_over or self is TargetState.ADOPTING


class OwnerState(StrEnum):
    PLACING = "placing"  # StartAttempt is answered by nobody yet
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        return self in (OwnerState.FINISHED, OwnerState.ABORTED, OwnerState.FAILED)
