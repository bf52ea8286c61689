"""The gate in front of vLLM's app: admission, priority class, shutdown."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
from pydantic import TypeAdapter, ValidationError

from llumnix.frontend.llm import engine_priority
from llumnix.frontend.priority import PriorityRules, Refused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

RETRY_AFTER_S = 1

_OPEN_PATHS = frozenset({"/health", "/ping", "/metrics", "/version"})
_NO_ENGINE_WORK = ("/tokenize", "/detokenize", "/render", "/derender", "/count_tokens", "/cancel")
_ENGINE_PREFIXES = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
    "/v1/audio",
    "/v2/embed",
    "/cohere/v2/chat",
    "/v2/rerank",
    "/inference",
    "/generative_scoring",
    "/pooling",
    "/classify",
    "/score",
    "/rerank",
    "/invocations",
)


_AS_VLLM_DOES = TypeAdapter(int)
"""Its field takes a text of digits, too."""


class _Body(msgspec.Struct):
    """The one field of a request's body that the gate reads."""

    priority: Any = msgspec.UNSET


class Admission(Protocol):
    """What the gate asks of the API server it stands in front of."""

    def is_stopping(self) -> bool: ...
    def is_serving(self) -> bool: ...
    def num_queued(self) -> int: ...


class Gate:
    """ASGI middleware: what would run on an engine passes only with an instance, room and a valid class."""

    def __init__(
        self, app: App, *, admission: Admission, rules: PriorityRules, max_queued: int | None
    ) -> None:
        self._app = app
        self._admission = admission
        self._rules = rules
        self._max_queued = max_queued
        self._decode = msgspec.json.Decoder(_Body).decode

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        key = self._known_key(headers)
        if self._rules.keys and key is None and not _is_open(scope):
            # vLLM's own check leaves out some paths that run an engine.
            await _answer(send, HTTPStatus.UNAUTHORIZED, "Unauthorized")
        elif scope["method"] == "POST" and _uses_engine(scope["path"]):
            await self._admit(scope, receive, send, headers, key)
        else:
            await self._app(scope, receive, send)

    async def _admit(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], key: str | None
    ) -> None:
        refusal = self._refuse()
        if refusal is not None:
            await _answer(send, *refusal)
            return
        body, receive = await _read_body(receive)
        try:
            priority = self._rules.resolve(headers.get("x-llumnix-priority"), self._priority_in(body), key)
        except Refused as refused:
            await _answer(send, refused.status, str(refused))
            return
        token = engine_priority.set(priority)
        try:
            await self._app(scope, receive, send)
        finally:
            engine_priority.reset(token)

    def _refuse(self) -> tuple[HTTPStatus, str] | None:
        if self._admission.is_stopping():
            return HTTPStatus.SERVICE_UNAVAILABLE, "this cluster is shutting down"
        if not self._admission.is_serving():
            return HTTPStatus.SERVICE_UNAVAILABLE, "no instance serves at the moment; please try again"
        if self._max_queued is not None:
            queued = self._admission.num_queued()
            if queued >= self._max_queued:
                return (
                    HTTPStatus.TOO_MANY_REQUESTS,
                    f"{queued} requests are queued already (http.max_queued = {self._max_queued})",
                )
        return None

    def _known_key(self, headers: dict[str, str]) -> str | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        # Every key is compared, each in constant time: how long it takes tells nothing about them.
        same = [key for key in self._rules.keys if hmac.compare_digest(key.encode(), given.encode())]
        return same[0] if same else None

    def _priority_in(self, body: bytes) -> int | None:
        """None if there is none; raises Refused for what vLLM would not take as a whole number."""
        try:
            given = self._decode(body).priority
        except msgspec.DecodeError:
            return None  # what is no such JSON is for vLLM to complain about
        if given is msgspec.UNSET:
            return None
        try:
            return _AS_VLLM_DOES.validate_python(given)
        except ValidationError:
            message = f"priority is {given!r:.100}, expected a whole number"
            raise Refused(HTTPStatus.BAD_REQUEST, message) from None


def _uses_engine(path: str) -> bool:
    return path.startswith(_ENGINE_PREFIXES) and not path.endswith(_NO_ENGINE_WORK)


def _is_open(scope: Scope) -> bool:
    """Probes, metrics and browsers' preflights need no key, as in vLLM."""
    return scope["path"] in _OPEN_PATHS or scope["method"] == "OPTIONS"


async def _read_body(receive: Receive) -> tuple[bytes, Receive]:
    """The whole body, and a `receive` that hands it out again."""
    parts: list[bytes] = []
    more = True
    disconnect: Message | None = None
    while more:
        message = await receive()
        if message["type"] != "http.request":
            disconnect = message
            break
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    if disconnect is not None:
        pending.append(disconnect)

    async def again() -> Message:
        return pending.pop(0) if pending else await receive()

    return body, again


async def _answer(send: Send, status: HTTPStatus, message: str) -> None:
    body = {"error": {"message": message, "type": status.phrase, "param": None, "code": status.value}}
    headers = [(b"content-type", b"application/json")]
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
