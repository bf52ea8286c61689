"""Which instances an API server can reach: the manager's table joined with the connections that are open."""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.wire import Table, TableEntry


@dataclass(frozen=True, slots=True)
class Change:
    """What a table or a new connection changed."""

    came: tuple[int, ...] = ()
    left: tuple[int, ...] = ()


class Membership:
    """Instances by uid; one is usable once the table names it and its connection has said JOIN.

    Invariant: `usable` is a subset of the table's uids and of `_joined`.
    """

    def __init__(self) -> None:
        self.version = -1
        self._entries: dict[int, TableEntry] = {}
        self._joined: set[int] = set()
        self._dead: set[int] = set()

    def usable(self) -> list[TableEntry]:
        return [entry for uid, entry in self._entries.items() if uid in self._joined]

    def is_usable(self, uid: int) -> bool:
        return uid in self._entries and uid in self._joined

    def is_known(self, uid: int) -> bool:
        return uid in self._entries

    def name(self, uid: int) -> str:
        entry = self._entries.get(uid)
        return entry.entry.instance if entry else f"instance #{uid}"

    def number(self, uid: int) -> int | None:
        """Of the instance, the same in all its incarnations: vLLM's metrics name engines by number."""
        entry = self._entries.get(uid)
        return instance_number(entry.entry.instance) if entry else None

    def numbers(self) -> frozenset[int]:
        """Of all instances that are there, whether they take requests or not."""
        return frozenset(instance_number(entry.entry.instance) for entry in self._entries.values())

    def apply(self, table: Table) -> Change:
        """Take the manager's table; an older one than the last changes nothing."""
        if table.version < self.version:
            return Change()
        self.version = table.version
        before = set(self._entries)
        entries = {e.entry.uid: e for e in table.entries if e.entry.uid not in self._dead}
        self._entries = entries
        left = tuple(before - set(entries))
        for uid in left:
            self._forget(uid)
        return Change(tuple(uid for uid in entries if uid not in before), left)

    def joined(self, uid: int) -> bool:
        """An instance's connection opened; True if it was open before, so that it was broken in between."""
        again = uid in self._joined
        self._joined.add(uid)
        return again

    def lost(self, uid: int) -> bool:
        """An instance is known to be dead before the manager said so; False if it was not in the table."""
        self._dead.add(uid)
        self._forget(uid)
        return self._entries.pop(uid, None) is not None

    def _forget(self, uid: int) -> None:
        self._joined.discard(uid)


def instance_number(name: str) -> int:
    """Of an instance's id, as the scheduler gives them out."""
    return int(name.removeprefix("i"))


def instance_name(number: int) -> str:
    """The reverse of `instance_number`."""
    return f"i{number}"
