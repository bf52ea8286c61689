"""The gate in front of the admin API: tokens, roles, rates, body size, and what answers a fault."""

import logging
import math
import re
from typing import Final
from urllib.parse import unquote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llumnix.admin.answers import error_answer
from llumnix.admin.rates import RateLimit
from llumnix.admin.tokens import TokenBook

log = logging.getLogger(__name__)

# Probes cannot carry a secret and learn one bit; the description of the API is public. Nothing else is open.
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/openapi.json"})
READING_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_BODY_BYTES: Final = 64 * 1024
TOKEN_KEY: Final = "llumnix.token"
ENCODED_SLASH: Final = "\0"


class Gate:
    """ASGI middleware that lets nothing through by default.

    It stands before routing, so that a route added later is behind it too: every path that is not open needs
    a token, every method that is not a reading one an operator's.
    """

    def __init__(self, app: ASGIApp, tokens: TokenBook, rate: RateLimit) -> None:
        self._app = app
        self._tokens = tokens
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; other protocols are not spoken here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the admin API speaks HTTP only, not {scope['type']}")
        _keep_encoded_slashes(scope)
        headers = dict(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        try:
            body = await _read_body(headers, receive)
        except ClientDisconnect:
            return  # nobody waits for an answer, and half a command is none
        if body is None:
            answer = error_answer(413, "too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")
            await answer(scope, receive, send)
            return
        await self._serve(scope, _replay(body, receive), send)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> ASGIApp | None:
        """Return the answer to a caller who may not do this, and note who calls otherwise."""
        method, path = scope["method"], scope["path"]
        if path in OPEN_PATHS and method in READING_METHODS:
            return None
        token = self._tokens.identify(headers.get(b"authorization"))
        if token is None:
            message = "a bearer token is needed: Authorization: Bearer <the secret in admin.token>"
            return error_answer(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})
        if method not in READING_METHODS and token.role != "operator":
            # As a literal: a path may hold line breaks.
            log.warning("token %s (role %s) was refused %s %.200r", token.name, token.role, method, path)
            message = f"token {token.name} has role {token.role}; {method} needs role operator"
            return error_answer(403, "forbidden", message)
        wait_s = self._rate.wait_s(token.name)
        if wait_s > 0:
            message = (
                f"token {token.name} sends more than {self._rate.per_s:g} requests/s; wait {wait_s:.2f} s"
            )
            return error_answer(429, "too_many_requests", message, {"Retry-After": str(math.ceil(wait_s))})
        scope[TOKEN_KEY] = token
        return None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except Exception:
            if started:  # too late for an answer: the server closes the connection and logs the error
                raise
            log.exception("%s %s failed", scope["method"], scope["path"])
            answer = error_answer(500, "internal", "a fault of the daemon; its log has the cause")
            await answer(scope, receive, send)


def slashes_back(segment: str) -> str:
    """Return a path parameter with the slashes that were encoded in it."""
    return segment.replace(ENCODED_SLASH, "/")


def _keep_encoded_slashes(scope: Scope) -> None:
    """Make %2F part of a path segment: clients choose request ids, and may put slashes in them."""
    raw_path = scope.get("raw_path") or b""
    if b"%2f" in raw_path.lower():
        scope["path"] = unquote(re.sub("%2f", "%00", raw_path.decode("ascii"), flags=re.IGNORECASE))


async def _read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
    """Return the body, or None if it is too large."""
    if int(headers.get(b"content-length", b"0")) > MAX_BODY_BYTES:
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once, and then what the server has to say."""
    given = False

    async def replaying() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying
