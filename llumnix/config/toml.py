"""Writing TOML: the few shapes a configuration has."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_key(name: str) -> str:
    """A key, quoted where TOML needs it."""
    return name if _BARE_KEY.fullmatch(name) else _text(name)


def inline(value: object) -> str:
    """A value on one line, as TOML writes it; what TOML has no word for (a date, None) as plain text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{toml_key(str(k))} = {inline(v)}" for k, v in value.items() if v is not None)
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(inline(v) for v in value) + "]"
    return _text(str(value))


def dumps(document: Mapping[str, Any]) -> str:
    """A TOML document; a table's keys that are None are left as a comment, since TOML has no null."""
    lines: list[str] = []
    _table(document, (), lines)
    return "\n".join(lines).strip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    plain = {k: v for k, v in table.items() if not isinstance(v, Mapping)}
    if path and (plain or not table):
        lines += ["", "[" + ".".join(toml_key(p) for p in path) + "]"]
    for name, value in plain.items():
        if value is None:
            lines.append(f"# {toml_key(name)} is not set")
        else:
            lines.append(f"{toml_key(name)} = {inline(value)}")
    for name, value in table.items():
        if isinstance(value, Mapping):
            _table(value, (*path, name), lines)


def _text(value: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML forbids bare.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
