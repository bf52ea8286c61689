"""Ids of one request: the engine's, vLLM's own, and the OpenAI response's."""

from __future__ import annotations

import re

_EPOCH = re.compile(r"@\d+\.\d+$")
_CHILD = re.compile(r"^\d+_")
_UNIQUE_SUFFIX = re.compile(r"-[0-9a-f]{8}$")
_PROMPT_INDEX = re.compile(r"^(cmpl-.+)-\d+$")


def internal_id(of_engine: str) -> str:
    """vLLM's own id of the request that an engine-side id is an epoch of."""
    return _EPOCH.sub("", of_engine)


def response_id(request_id: str) -> str:
    """The OpenAI response id of an engine-side id (vLLM: CHILD_ before, -UNIQUE after, cmpl-X-PROMPT)."""
    external = _UNIQUE_SUFFIX.sub("", _CHILD.sub("", internal_id(request_id)))
    of_prompt = _PROMPT_INDEX.match(external)
    return of_prompt[1] if of_prompt else external
