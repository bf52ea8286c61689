"""Whether all of what an instance has sent to this API server has come."""

from __future__ import annotations


class MessageOrder:
    """By the numbers of messages; reports come at least every 0.5 s, so that a loss soon shows."""

    def __init__(self) -> None:
        self._due: dict[int, int] = {}

    def take(self, uid: int, number: int) -> bool:
        """Take a message in; False if one before it is missing.

        The first one that is seen may have any number: this process may be younger. 0 begins anew.
        """
        due = self._due.get(uid, number)
        self._due[uid] = number + 1
        return number in (due, 0)

    def forget(self, uid: int) -> None:
        """It is dead."""
        self._due.pop(uid, None)
