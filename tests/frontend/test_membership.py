"""Which instances an API server can reach: table and connections, in whatever order they come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llumnix.core.events import DispatchEntry
from llumnix.frontend.membership import Membership
from llumnix.wire import Table, TableEntry


def table(version: int, *uids: int) -> Table:
    return Table(version, tuple(TableEntry(DispatchEntry(uid, f"i{uid}", True), b"") for uid in uids))


def usable(membership: Membership) -> list[int]:
    return [entry.entry.uid for entry in membership.usable()]


def test_an_instance_is_usable_once_it_is_in_the_table_and_joined() -> None:
    membership = Membership()
    assert membership.apply(table(1, 1, 2)).came == (1, 2)
    assert usable(membership) == []
    assert membership.joined(1) is False
    assert usable(membership) == [1]


def test_numbers_are_those_of_instances_that_are_there_joined_or_not() -> None:
    membership = Membership()
    membership.apply(table(1, 1, 2, 3))
    membership.lost(3)
    assert membership.numbers() == {1, 2}
    membership.apply(table(2, 2))
    assert membership.numbers() == {2}


def test_joining_before_the_table_counts() -> None:
    membership = Membership()
    membership.joined(1)
    membership.apply(table(1, 1))
    assert usable(membership) == [1]


def test_a_second_join_tells_that_the_connection_was_broken() -> None:
    membership = Membership()
    membership.joined(1)
    assert membership.joined(1) is True


def test_a_late_table_does_not_revive_the_dead() -> None:
    membership = Membership()
    membership.apply(table(1, 1, 2))
    membership.joined(1)
    assert membership.lost(1) is True
    assert membership.lost(1) is False
    assert membership.apply(table(2, 1, 2)).came == ()
    assert usable(membership) == []


def test_an_old_table_changes_nothing() -> None:
    membership = Membership()
    membership.apply(table(5, 1))
    assert membership.apply(table(4, 2)).came == ()
    assert membership.is_known(1)


def test_an_instance_keeps_its_number_through_its_incarnations() -> None:
    membership = Membership()
    membership.apply(Table(1, (TableEntry(DispatchEntry(4, "i12", True), b""),)))
    assert membership.number(4) == 12
    membership.apply(Table(2, (TableEntry(DispatchEntry(9, "i12", True), b""),)))
    assert (membership.number(4), membership.number(9)) == (None, 12)


@given(
    st.lists(st.tuples(st.sampled_from(["table", "join", "lost"]), st.sets(st.integers(1, 5), max_size=4)))
)
def test_only_what_the_table_names_and_nobody_lost_is_usable(steps: list[tuple[str, set[int]]]) -> None:
    membership = Membership()
    joined: set[int] = set()
    dead: set[int] = set()
    named: set[int] = set()
    for version, (kind, uids) in enumerate(steps):
        if kind == "table":
            change = membership.apply(table(version, *sorted(uids)))
            now = uids - dead
            assert set(change.came) == now - named
            assert set(change.left) == named - now
            joined -= named - now
            named = now
        else:
            for uid in uids:
                if kind == "join":
                    membership.joined(uid)
                    joined.add(uid)
                else:
                    membership.lost(uid)
                    dead.add(uid)
                    named.discard(uid)
                    joined.discard(uid)
        assert set(usable(membership)) == named & joined
        assert all(membership.number(uid) == uid for uid in named)
