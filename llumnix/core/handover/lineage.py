"""Where one attempt of a request ran and runs: its hops, as far as the API server has heard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hop:
    number: int
    uid: int
    offset: int | None
    """Output tokens before its first one; None: it was announced by MOVED, ADOPTED did not come yet."""


class Lineage:
    """Hops by number, in any order of arrival; the largest is where the request is."""

    def __init__(self, offset: int) -> None:
        self.first_offset = offset
        self._hops: dict[int, Hop] = {}

    def add(self, number: int, uid: int, *, offset: int) -> None:
        """The hop runs there."""
        self._hops[number] = Hop(number, uid, offset)

    def expect(self, number: int, uid: int) -> None:
        """The hop should run there; what is known already is known better."""
        self._hops.setdefault(number, Hop(number, uid, None))

    def hops(self) -> Iterator[Hop]:
        return iter(self._hops.values())

    @property
    def latest(self) -> Hop | None:
        return self._hops[max(self._hops)] if self._hops else None

    @property
    def latest_uid(self) -> int | None:
        return self.latest.uid if self.latest else None

    def ran_at(self, uid: int) -> bool:
        return any(hop.uid == uid for hop in self._hops.values())

    def is_superseded(self, number: int, offset: int) -> bool:
        """A later hop began at or before this offset: this one cannot have anything to say there."""
        return any(
            hop.number > number and hop.offset is not None and hop.offset <= offset
            for hop in self._hops.values()
        )

    def has_gap(self, num_delivered: int) -> bool:
        """Tokens of earlier hops are missing, or nobody says that the request goes on."""
        latest = self.latest
        if latest is None:
            return False
        return latest.offset is None or latest.offset > num_delivered
