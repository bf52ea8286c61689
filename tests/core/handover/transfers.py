"""A model of the transport: data is read and written at any time while an end is open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from llumnix.core.handover.events import CancelConfirmed, CopyDone, CopyEnd, CopyFailed

Move = tuple[str, Callable[[], None]]


class End(Enum):
    UNUSED = auto()
    OPEN = auto()
    DONE = auto()
    BROKEN = auto()


@dataclass(slots=True)
class Side:
    uid: int
    blocks: list[int] = field(default_factory=list)
    end: End = End.UNUSED
    cancelled: bool = False

    def open(self, blocks: list[int]) -> None:
        assert self.end is End.UNUSED, "the copy was opened twice"
        self.blocks = blocks
        self.end = End.OPEN


@dataclass(slots=True)
class Transfer:
    """One copy: blocks are read at the source into the network, and written from there at the target."""

    migration: str
    copy: int
    source: Side
    target: Side
    tell: Callable[[int, CopyEnd], None]
    read: Callable[[int, int], list[int]]
    write: Callable[[int, int, list[int]], None]
    under_way: dict[int, list[int]] = field(default_factory=dict)
    num_read: int = 0
    num_written: int = 0

    def moves(self) -> Iterator[Move]:
        if self.source.end is End.OPEN:
            if self.num_read < len(self.source.blocks):
                yield "read", self._read
            else:
                yield "sent", lambda: self._done(self.source)
            yield from self._ways_out(self.source, self.target)
        if self.target.end is End.OPEN:
            if self.num_written in self.under_way:
                yield "write", self._write
            elif self.num_written == len(self.target.blocks):
                yield "received", lambda: self._done(self.target)
            yield from self._ways_out(self.target, self.source)

    def _ways_out(self, side: Side, other: Side) -> Iterator[Move]:
        if side.cancelled:
            yield "confirm cancel", lambda: self._close(side, CancelConfirmed(self.migration, self.copy))
        if other.end is End.BROKEN:
            failed = CopyFailed(self.migration, self.copy, "the other side is gone")
            yield "fail", lambda: self._close(side, failed)

    def _read(self) -> None:
        self.under_way[self.num_read] = self.read(self.source.uid, self.source.blocks[self.num_read])
        self.num_read += 1

    def _write(self) -> None:
        self.write(self.target.uid, self.target.blocks[self.num_written], self.under_way[self.num_written])
        self.num_written += 1

    def _done(self, side: Side) -> None:
        side.end = End.DONE
        self.tell(side.uid, CopyDone(self.migration, self.copy))

    def _close(self, side: Side, event: CopyEnd) -> None:
        side.end = End.BROKEN
        self.tell(side.uid, event)

    def died(self, uid: int) -> None:
        for side in (self.source, self.target):
            if side.uid == uid and side.end is not End.DONE:
                side.end = End.BROKEN

    def touched(self, uid: int) -> set[int]:
        return {
            block
            for side in (self.source, self.target)
            if side.uid == uid and side.end is End.OPEN
            for block in side.blocks
        }

    @property
    def is_over(self) -> bool:
        return self.source.end is not End.OPEN and self.target.end is not End.OPEN
