"""Beginnings of prompts: which instance was sent which, as its prefix cache may still hold them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

CHUNK_TOKENS = 128
"""Prompts are told apart in pieces of so many tokens: a multiple of every KV block size in use."""


def prefix_keys(tokens: Sequence[int], salt: str = "") -> tuple[int, ...]:
    """A key for each whole chunk of a prompt, which stands for all before it too.

    The last token is always computed, so a chunk that ends with it gives nothing. `salt` parts prompts whose
    KV differs though their tokens are the same.
    """
    keys = []
    digest = blake2b(salt.encode())
    for end in range(CHUNK_TOKENS, len(tokens), CHUNK_TOKENS):
        digest.update(array("q", tokens[end - CHUNK_TOKENS : end]))
        keys.append(int.from_bytes(digest.digest()[:8], "little"))
    return tuple(keys)


class SeenPrefixes:
    """Keys of the prompts sent to one instance, as far as they fit its KV cache; the oldest go first.

    Invariant: with a key of a prompt, all before it are known too.
    """

    def __init__(self) -> None:
        self._keys: dict[int, None] = {}
        """In the order of their last use."""

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: int) -> bool:
        return key in self._keys

    def add(self, keys: Sequence[int], capacity_tokens: int) -> None:
        """Note a prompt; an end is forgotten before its beginning, as in vLLM's block pool."""
        for key in reversed(keys):
            self._keys.pop(key, None)
            self._keys[key] = None
        while len(self._keys) * CHUNK_TOKENS > capacity_tokens:
            del self._keys[next(iter(self._keys))]

    def num_known(self, keys: Sequence[int], at_least: int = 0) -> int:
        """How many of a prompt's keys are known, where `at_least` so many are."""
        known = at_least
        while known < len(keys) and keys[known] in self._keys:
            known += 1
        return known
