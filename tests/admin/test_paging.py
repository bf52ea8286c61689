"""Cursors: every item once, also while the list changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.admin.paging import KEPT_S, Listing, encode_cursor, natural, take_page
from llumnix.errors import ConfigError


def test_ids_are_in_the_order_people_count() -> None:
    assert sorted(["i10", "i2", "9", "i1", "10"], key=natural) == ["9", "10", "i1", "i2", "i10"]


@given(st.sets(st.text(max_size=6)), st.integers(1, 7))
def test_pages_hold_every_item_once_in_order(ids: set[str], limit: int) -> None:
    seen: list[str] = []
    cursor = None
    while True:
        page, cursor = take_page(sorted(ids, key=natural), natural, limit, cursor)
        seen += page
        if cursor is None:
            break
        assert len(page) == limit
    assert set(seen) == ids
    assert len(seen) == len(ids)
    keys = [natural(item) for item in seen]
    assert keys == sorted(keys)


def test_a_cursor_outlives_its_item() -> None:
    ids = ["a", "b", "c", "d"]
    _, cursor = take_page(ids, natural, 2, None)
    assert take_page(["a", "c", "d"], natural, 2, cursor) == (("c", "d"), None)


@pytest.mark.parametrize("cursor", ["", "!", "e30", "AAAA", encode_cursor([1]), "W1tdXQ", "Wy" * 400])
def test_what_is_no_cursor_of_the_list_is_refused(cursor: str) -> None:
    with pytest.raises(ConfigError, match="cursor"):
        take_page(["a1", "a2"], natural, 1, cursor)


def test_further_parts_of_a_list_are_of_the_moment_of_the_first_one() -> None:
    now, there = [0.0], ["a2", "a1"]
    listing = Listing(lambda: there, natural, clock=lambda: now[0])
    assert listing.ordered(None) == ["a1", "a2"]
    there.append("a3")
    assert listing.ordered("a cursor") == ["a1", "a2"]
    assert listing.ordered(None) == ["a1", "a2", "a3"]
    there.append("a4")
    now[0] += 2 * KEPT_S
    assert listing.ordered("a cursor of long ago") == ["a1", "a2", "a3", "a4"]
