"""Lists in parts: a cursor is the sort key of the last item sent, valid while items come and go."""

import base64
import json
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from llumnix.errors import ConfigError

Item = TypeVar("Item")
Key = list[int | float | str]


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
    items: Iterable[Item], key: Callable[[Item], Key], limit: int, cursor: str | None
) -> tuple[tuple[Item, ...], str | None]:
    """Return the `limit` items that follow the cursor in the order of `key`, and the next cursor."""
    ordered = sorted(((key(item), item) for item in items), key=lambda pair: pair[0])
    if cursor is not None:
        after = decode_cursor(cursor)
        try:
            ordered = [pair for pair in ordered if pair[0] > after]
        except TypeError as error:  # a cursor of another list
            raise _bad_cursor(cursor) from error
    page = ordered[:limit]
    following = encode_cursor(page[-1][0]) if len(ordered) > limit else None
    return tuple(item for _, item in page), following


def _bad_cursor(cursor: str) -> ConfigError:
    return ConfigError(
        f"cursor: {cursor[:80]!r} is not a cursor of this list, expected the `next` of an earlier answer"
    )
