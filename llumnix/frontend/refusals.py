"""Errors that a client of the OpenAI endpoint sees for what happens to it in the cluster."""

from __future__ import annotations

from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError


class ServiceUnavailable(GracefulHTTPError):
    """The cluster cannot serve this request now; the client may try again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, HTTPStatus.SERVICE_UNAVAILABLE)


class AbortedByOperator(GracefulHTTPError):
    """An operator ended the request; trying again is not wanted."""

    def __init__(self, message: str) -> None:
        super().__init__(message, HTTPStatus.GONE)
