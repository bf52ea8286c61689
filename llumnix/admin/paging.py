"""Lists in parts: a cursor is the sort key of the last item sent, valid while items come and go."""

import base64
import json
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, TypeVar

from llumnix.errors import ConfigError

Item = TypeVar("Item")
Key = list[int | float | str]
KEPT_S: Final = 5.0


def natural(text: str) -> Key:
    """Return a sort key by which i2 stands before i10. Text and numbers alternate, so keys always compare."""
    return [int(part) if position % 2 else part for position, part in enumerate(re.split(r"([0-9]+)", text))]


def encode_cursor(key: Key) -> str:
    """Return the opaque form of a sort key."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> Key:
    """Return the sort key in a cursor, or raise ConfigError."""
    try:
        key = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError) as error:
        raise _bad_cursor(cursor) from error
    if not isinstance(key, list) or not all(type(part) in (int, float, str) for part in key):
        raise _bad_cursor(cursor)
    return key


def take_page(
    ordered: Sequence[Item], key: Callable[[Item], Key], limit: int, cursor: str | None
) -> tuple[tuple[Item, ...], str | None]:
    """Return the `limit` items that follow the cursor in a list ordered by `key`, and the next cursor."""
    begin = 0
    if cursor is not None:
        after = decode_cursor(cursor)
        try:
            begin = bisect_right(ordered, after, key=key)
        except TypeError as error:  # a cursor of another list
            raise _bad_cursor(cursor) from error
    page = tuple(ordered[begin : begin + limit])
    return page, encode_cursor(key(page[-1])) if begin + limit < len(ordered) else None


class Listing(Generic[Item]):
    """A long list in order. Its parts are asked for one right after the other, and are of one moment:

    a list of 10,000 is made and sorted once, not once for each of its parts.
    """

    def __init__(
        self,
        make: Callable[[], Iterable[Item]],
        key: Callable[[Item], Key],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self.key, self._clock = make, key, clock
        self._ordered: list[Item] = []
        self._made_at = float("-inf")

    def ordered(self, cursor: str | None) -> list[Item]:
        """Return the list as it is now, or for a further part as it was when the first one was asked for."""
        now = self._clock()
        if cursor is None or now - self._made_at > KEPT_S:
            self._ordered, self._made_at = sorted(self._make(), key=self.key), now
        return self._ordered


def _bad_cursor(cursor: str) -> ConfigError:
    return ConfigError(
        f"cursor: {cursor[:80]!r} is not a cursor of this list, expected the `next` of an earlier answer"
    )
