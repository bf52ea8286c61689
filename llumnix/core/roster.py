"""All instances of the cluster, by id and by the uid of their live process; no number is used twice."""

from __future__ import annotations

from collections.abc import Iterator

from llumnix.core.events import UnknownInstance
from llumnix.core.member import Member


class Roster:
    """Who is a member. Guarantees: no id and no uid is ever given out twice; iteration is by age."""

    def __init__(self, *, first_uid: int, first_instance: int) -> None:
        self._next_uid = first_uid
        self._next_instance = first_instance
        self._members: dict[str, Member] = {}
        self._by_uid: dict[int, Member] = {}

    def new_uid(self) -> int:
        self._next_uid += 1
        return self._next_uid - 1

    def new_instance(self) -> str:
        self._next_instance += 1
        return f"i{self._next_instance - 1}"

    def enter(self, member: Member) -> None:
        """Know a member by the uid of its present incarnation, and by no former one."""
        self._members[member.instance] = member
        self._by_uid[member.run.uid] = member

    def named(self, instance: str) -> Member:
        """The member with this id; raises UnknownInstance."""
        member = self._members.get(instance)
        if member is None:
            raise UnknownInstance(f"no instance is called {instance!r}")
        return member

    def live(self, uid: int) -> Member | None:
        """The member whose live process has this uid; None for the dead and the unknown."""
        return self._by_uid.get(uid)

    def died(self, uid: int) -> Member | None:
        """As `live`, and from now on the uid is nobody's."""
        return self._by_uid.pop(uid, None)

    def forget(self, member: Member) -> None:
        del self._members[member.instance]

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        for uid, member in self._by_uid.items():
            assert member.run.uid == uid < self._next_uid
            assert self._members[member.instance] is member
        for member in self._members.values():
            assert member.is_live == (self._by_uid.get(member.run.uid) is member), member
