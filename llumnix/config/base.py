"""What all sections share: frozen, strict, and no key that nobody reads."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from llumnix.errors import ConfigError


class Section(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def must(check: Callable[[Any], bool], expected: str) -> AfterValidator:
    """A validator that says what was expected when `check` is false."""

    def validate(value: Any) -> Any:
        if not check(value):
            raise PydanticCustomError("expected", "{expected}", {"expected": expected})
        return value

    return AfterValidator(validate)


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise PydanticCustomError("expected", "a path whose ~user exists on this machine") from None


def read_secret(path: Path, key: str) -> str:
    """The secret that a file holds, without the line's end; raises ConfigError naming `key`."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f'{key} = "{path}" is not valid: expected a readable file ({reason}).') from None
    if not text:
        raise ConfigError(f'{key} = "{path}" is not valid: expected a file that is not empty.')
    return text


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only; a name other than localhost counts as not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_node_ip(text: str) -> bool:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    if address.is_loopback:  # Ray keeps to the loopback interface by this address only
        return text == "127.0.0.1"
    return not (address.is_unspecified or address.is_multicast)


# Stands in actor names, file names and log lines.
Name = Annotated[
    str,
    must(
        lambda v: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", v) is not None,
        "1 to 32 letters, digits, dots, dashes or underscores, the first a letter or digit",
    ),
]
Text = Annotated[str, Field(min_length=1)]
UserPath = Annotated[
    Path,
    Field(strict=False),
    must(lambda p: str(p) != "." and "\0" not in str(p), "a path that is not empty"),
    AfterValidator(_absolute),
]
Host = Annotated[
    str, must(lambda v: re.fullmatch(r"[A-Za-z0-9_.:-]+", v) is not None, "a host name or IP address")
]
NodeIp = Annotated[
    str,
    must(_is_node_ip, "the IPv4 address at which other nodes reach this machine, or 127.0.0.1"),
]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
