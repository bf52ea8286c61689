"""How long an instance may go on that nobody can reach."""

from __future__ import annotations

from collections.abc import Hashable


class Lease:
    """Runs while no connection at all is open: neither to the manager nor to any API server.

    By then its requests run elsewhere and its output is dropped; what is left of it would be computed for
    nobody, beside the instance that took its place. Not thread-safe; `now` is passed in.
    """

    def __init__(self, lease_s: float, now: float) -> None:
        self._lease_s = lease_s
        self._open: set[Hashable] = set()
        self._alone_since: float | None = now

    def opened(self, connection: Hashable) -> None:
        self._open.add(connection)
        self._alone_since = None

    def lost(self, connection: Hashable, now: float) -> None:
        self._open.discard(connection)
        if not self._open and self._alone_since is None:
            self._alone_since = now

    def is_over(self, now: float) -> bool:
        return self._alone_since is not None and now - self._alone_since >= self._lease_s
