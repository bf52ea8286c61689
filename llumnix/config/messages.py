"""Every way a setting can be wrong, as one sentence that names the key, the value and what was expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llumnix.config.toml import inline, toml_key
from llumnix.errors import ConfigError

MASK = "****"
_MAX_VALUE_CHARS = 80
_SECRET_NAME = re.compile(r"(^|[_ ])(key|token|secret|password|passwd|credentials)$")
_PATHS_NAMED_LIKE_SECRETS = frozenset({"tls_key"})
# Lists whose entries hold secrets: what stands in place of an entry may be one.
_LISTS_OF_SECRETS = frozenset({"api_keys", "tokens"})
# An unset field whose default depends on one that failed: the consequence of another error, never the cause.
_CONSEQUENCE = "default_factory_not_called"

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "list_type": "a list",
    "literal_error": "one of {expected}",
    "mapping_type": "a table",
    "model_type": "a table",
    "path_type": "a path",
    "string_too_short": "a text that is not empty",
    "string_type": "a text",
    "too_short": "a text that is not empty",
    "tuple_type": "a list",
}


def dotted(location: Iterable[str | int]) -> str:
    """A place in the file as an operator writes it: http.api_keys[0].key, scheduler."llumnix+"."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + toml_key(part)
    return text


def is_secret(name: str) -> bool:
    """Whether a key of this name holds a secret, which then is never shown."""
    plain = name.replace("-", "_").lower()
    return plain not in _PATHS_NAMED_LIKE_SECRETS and _SECRET_NAME.search(plain) is not None


def show(name: str, value: object) -> str:
    """A value on one line, cut when long and masked when its key's name says that it is secret."""
    text = f'"{MASK}"' if is_secret(name) else inline(masked(value))
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 3] + "..."


def masked(value: Any) -> Any:
    """The same value with whatever a secret's name stands over replaced."""
    if isinstance(value, dict):
        return {k: MASK if is_secret(str(k)) and v is not None else masked(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked(v) for v in value]
    return value


def wrong(key: str, value: object, expected: str) -> ConfigError:
    """The error for a known key with a value that it cannot have."""
    return ConfigError(f"{key} = {show(key.rpartition('.')[2], value)} is not valid: expected {expected}.")


def missing(key: str, expected: str) -> ConfigError:
    """The error for a key that must be there and is not."""
    return ConfigError(f"{key} is missing: expected {expected}.")


def unknown(key: str, value: object, suggestions: Sequence[str]) -> ConfigError:
    """The error for a key that nobody reads; the value of one beside secrets is not shown."""
    shown = inline(MASK) if _stands_in_list_of_secrets(key) else show(key.rpartition(".")[2], value)
    hint = (
        f"did you mean {' or '.join(suggestions)}?" if suggestions else "configs/reference.toml has them all."
    )
    return ConfigError(f"{key} = {shown} is not a known key: {hint}")


def _stands_in_list_of_secrets(key: str) -> bool:
    return any(f"{name}[" in key for name in _LISTS_OF_SECRETS)


def closest(name: str, names: Iterable[str]) -> list[str]:
    """The known names most like `name`, best first."""
    return difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)


def explain(error: ValidationError, root: type[BaseModel]) -> ConfigError:
    """The first thing that pydantic found wrong, in our words."""
    first = next(e for e in error.errors(include_url=False) if e["type"] != _CONSEQUENCE)
    location, kind, value = first["loc"], first["type"], first["input"]
    key = dotted(location)
    if location[-1] == "[key]":
        key = f"{dotted(location[:-2])} (a name in it)"
    if [part for part in location if isinstance(part, str)][
        -1
    ] in _LISTS_OF_SECRETS and kind != "extra_forbidden":
        value = MASK
    if kind == "extra_forbidden":
        return unknown(key, value, _suggest(location, root))
    if kind == "missing":
        return missing(key, "a value, as it has no default")
    template = _EXPECTED.get(kind)
    expected = template.format(**first.get("ctx", {})) if template else first["msg"]
    return wrong(key, value, expected)


def _suggest(location: tuple[str | int, ...], root: type[BaseModel]) -> list[str]:
    """Keys that could be meant, in full: of that very name in another table, else of a similar one here."""
    *table, name = [part for part in location if isinstance(part, str)]
    keys = list(_keys(root, ()))
    siblings = {k[-1]: dotted(k) for k in keys if len(k) == len(table) + 1 and _same_table(k[:-1], table)}
    if elsewhere := [dotted(k) for k in keys if k[-1] == name and len(k) > 1]:
        return elsewhere
    return [siblings[n] for n in closest(name, siblings)[:1]]


def _same_table(known: tuple[str, ...], table: list[str]) -> bool:
    return all(k in ("*", t) for k, t in zip(known, table, strict=True))


def _keys(model: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The place of every key below `model`; * stands for a name that the operator chooses."""
    for name, field in model.model_fields.items():
        place = (*prefix, field.alias or name)
        yield place
        for inner, open_names in _inner_models(field.annotation):
            yield from _keys(inner, (*place, "*") if open_names else place)


def _inner_models(annotation: Any) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, False
        return
    arguments = get_args(annotation)
    is_mapping = len(arguments) == 2 and arguments[0] is str
    for argument in arguments:
        for inner, _ in _inner_models(argument):
            yield inner, is_mapping
