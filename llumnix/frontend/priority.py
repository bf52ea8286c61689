"""Which priority class a request gets: from its header, vLLM's priority field or its API key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus


class Refused(Exception):
    """The request may not have the priority it asks for; `status` says why not."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class KeyRule:
    """What one API key may ask for; None: the default class, any class."""

    name: str
    default_class: str | None = None
    max_class: str | None = None


@dataclass(frozen=True, slots=True)
class PriorityRules:
    """The cluster's classes, most important first, by name with their engine priority, and its API keys."""

    classes: Mapping[str, int]
    keys: Mapping[str, KeyRule] = field(default_factory=dict)

    def resolve(self, header: str | None, body: int | None, key: str | None) -> int:
        """The engine priority of a request; the header beats vLLM's field, that the key's default.

        Raises Refused: 400 for what is no class, 403 for a class above the key's `max_priority`.
        """
        rule = self.keys.get(key) if key is not None else None
        priority = self._asked_for(header, body)
        if priority is None:
            default = rule.default_class if rule else None
            priority = self.classes[default] if default else 0
        if rule and rule.max_class is not None and priority < self.classes[rule.max_class]:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"API key {rule.name} may ask for priority {rule.max_class!r} at most, "
                f"but this request asks for {self._name(priority)!r}",
            )
        return priority

    def _asked_for(self, header: str | None, body: int | None) -> int | None:
        if header is not None:
            if header not in self.classes:
                raise Refused(
                    HTTPStatus.BAD_REQUEST,
                    f"X-Llumnix-Priority is {header!r}, expected one of {', '.join(self.classes)}",
                )
            return self.classes[header]
        if body is not None and body not in self.classes.values():
            raise Refused(
                HTTPStatus.BAD_REQUEST,
                f"priority is {body}, expected that of a class: "
                + ", ".join(f"{value} ({name})" for name, value in self.classes.items()),
            )
        return body

    def _name(self, priority: int) -> str:
        return next(name for name, value in self.classes.items() if value == priority)
