"""Errors as the admin API answers them: a fitting status and {"error": {"code", "message"}}."""

import http
import re
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from llumnix.admin.control import MigrationUnavailableError
from llumnix.admin.journal import JournalError
from llumnix.admin.schema import ErrorBody, ErrorDetail
from llumnix.errors import ConfigError, LlumnixError, RefusedError, UnknownTargetError

# The most specific first. What else the cluster raises is a fault of ours: 500.
STATUS_AND_CODE: tuple[tuple[type[LlumnixError], int, str], ...] = (
    (UnknownTargetError, 404, "not_found"),
    (MigrationUnavailableError, 409, "migration_unavailable"),
    (RefusedError, 409, "refused"),
    (ConfigError, 400, "invalid"),
    (JournalError, 503, "journal_unavailable"),
)
DESCRIPTIONS = {
    400: "A field or parameter is unknown or has a bad value.",
    401: "The bearer token is missing or unknown.",
    403: "The token's role does not allow this.",
    404: "Nothing has this id.",
    409: "Known, but impossible now; the message says why.",
    413: "The body is larger than 64 KiB.",
    429: "The token sends too many requests a second; Retry-After says how long to wait.",
    500: "A fault of the daemon; its log has the cause.",
    503: "Not ready, or the journal cannot be read.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of these error answers, and of those that any call may get."""
    statuses = (*statuses, 429)
    return {status: {"model": ErrorBody, "description": DESCRIPTIONS[status]} for status in statuses}


def error_answer(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as a response."""
    body = ErrorBody(error=ErrorDetail(code=code, message=message))
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def status_and_code(error: LlumnixError) -> tuple[int, str]:
    """Return how an error is answered."""
    for kind, status, code in STATUS_AND_CODE:
        if isinstance(error, kind):
            return status, code
    return 500, "internal"


def install_handlers(app: FastAPI) -> None:
    """Make the app answer every foreseen error in the contract's form; the gate answers the rest."""
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    for kind, _, _ in STATUS_AND_CODE:
        app.add_exception_handler(kind, _on_llumnix_error)


async def _on_llumnix_error(_: Request, error: Exception) -> JSONResponse:
    status, code = status_and_code(cast(LlumnixError, error))
    return error_answer(status, code, str(error))


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    problems = [_describe(problem) for problem in cast(RequestValidationError, error).errors()]
    return error_answer(400, "invalid", "; ".join(problems))


def _describe(problem: dict[str, Any]) -> str:
    """Return one validation error as field, expectation and value."""
    where = ".".join(str(part) for part in problem["loc"])
    text = f"{where}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
    if problem["type"] in ("missing", "json_invalid", "extra_forbidden"):
        return text
    value = repr(problem.get("input"))
    return f"{text}, got {value if len(value) <= 80 else value[:79] + '…'}"


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer what the framework itself raises: no such route, wrong method, unreadable body."""
    problem = cast(HTTPException, error)
    headers = dict(problem.headers or {})
    method, path = request.method, request.url.path
    if problem.status_code == 404:
        return error_answer(404, "not_found", f"there is no route {method} {path}")
    if problem.status_code == 405:
        headers["Allow"] = allowed = ", ".join(_methods_at(request))
        return error_answer(405, "method_not_allowed", f"{path} takes {allowed}, not {method}", headers)
    if problem.status_code == 400:
        return error_answer(400, "invalid", str(problem.detail), headers)
    phrase = http.HTTPStatus(problem.status_code).phrase
    code = re.sub(r"[^a-z]+", "_", phrase.lower())
    return error_answer(problem.status_code, code, str(problem.detail), headers)


def _methods_at(request: Request) -> list[str]:
    """Return the methods of all routes at a path; the framework names those of the first one only."""
    methods: set[str] = set()
    for route in request.app.router.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)
