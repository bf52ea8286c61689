"""The admin API for a command line: one blocking call after the other."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from llumnix.admin.schema import DEFAULT_URL, ErrorBody, Event, Instance, Node, Page
from llumnix.ctl.errors import CtlError, Exit

TIMEOUT_S: Final = 30.0
STREAM_SILENCE_S: Final = 40.0
"""The server sends a comment every 15 s: more silence than this means that it is gone."""
PAGE_LIMIT: Final = 1000

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")


class AdminApi:
    """Calls the admin API; every failure is a CtlError with the server's own sentence."""

    def __init__(self, url: str, token: str | None, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # Without the environment's proxies: the admin API is on loopback or in the operator's own network.
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT_S, trust_env=False, transport=transport
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, model: type[Model], **params: str | int | None) -> Model:
        return _parsed(model, self.call("GET", path, params=params).content)

    def items(
        self, path: str, page: type[Page[Item]], limit: int | None = None, **params: str | int | None
    ) -> list[Item]:
        """Return a list's first `limit` items; all of them by default."""
        items: list[Item] = []
        cursor: str | None = None
        while True:
            wanted = PAGE_LIMIT if limit is None else min(PAGE_LIMIT, limit - len(items))
            part = self.get(path, page, limit=wanted, cursor=cursor, **params)
            items += part.items
            cursor = part.next
            if cursor is None or len(items) == limit:
                return items

    def command(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a command; returns the server's answer."""
        answer: dict[str, Any] = self.call(method, path, body=body).json()
        return answer

    def follow(self, since: int | None) -> Iterator[Event]:
        """Yield events as they are written, until the server closes the stream or is gone."""
        params = {} if since is None else {"since": since}
        timeout = httpx.Timeout(TIMEOUT_S, read=STREAM_SILENCE_S)
        try:
            with self._http.stream("GET", "/v1/events/stream", params=params, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        yield _parsed(Event, line.removeprefix("data:"))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def call(
        self,
        method: str,
        path: str,
        params: dict[str, str | int | None] | None = None,
        body: dict[str, Any] | None = None,
    ) -> httpx.Response:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            response = self._http.request(method, path, params=given, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _refusal(response)
        return response

    def instance(self, instance_id: str) -> Instance:
        return self.get(path_of("instances", instance_id), Instance)

    def node(self, node_id: str) -> Node:
        return self.get(path_of("nodes", node_id), Node)

    def _unreachable(self, error: httpx.HTTPError) -> CtlError:
        return CtlError(
            f"the admin API at {self.url} does not answer: {error or type(error).__name__}", Exit.UNREACHABLE
        )


def path_of(kind: str, target_id: str, *rest: str) -> str:
    """Return the path of one target; its id may hold any character."""
    return "/".join(("/v1", kind, quote(target_id, safe=""), *rest))


def check_url(url: str) -> None:
    """Raise CtlError unless there can be an admin API at this URL."""
    try:
        parts = httpx.URL(url)
        valid = parts.scheme in ("http", "https") and parts.host and (parts.port or 1) <= 65535
    except httpx.InvalidURL:
        valid = False
    if not valid:
        raise CtlError(f"--url: {url!r}, expected a URL such as {DEFAULT_URL}", Exit.USAGE)


def read_token(path: Path) -> str:
    """Return the token in a file."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise CtlError(f"--token-file: cannot read {path}: {error.strerror}", Exit.NOT_ALLOWED) from error
    except UnicodeDecodeError as error:
        raise CtlError(f"--token-file: {path} holds no token, expected one line", Exit.USAGE) from error
    if not re.fullmatch(r"\S+", token):
        raise CtlError(f"--token-file: {path} holds no token, expected one line without spaces", Exit.USAGE)
    return token


def _refusal(response: httpx.Response) -> CtlError:
    code = Exit.NOT_ALLOWED if response.status_code in (401, 403) else Exit.REFUSED
    try:
        return CtlError(ErrorBody.model_validate_json(response.content).error.message, code)
    except ValidationError:
        return CtlError(f"the server answered {response.status_code} {response.reason_phrase}", code)


def _parsed(model: type[Model], content: bytes | str) -> Model:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise CtlError(
            f"what answers is no admin API of llumnix: {error.errors()[0]['msg']}", Exit.REFUSED
        ) from error
