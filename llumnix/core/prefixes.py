"""Beginnings of prompts: which instance was sent which, as its prefix cache may still hold them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

CHUNK_TOKENS = 128
"""Prompts are told apart in pieces of so many tokens: a multiple of every KV block size in use."""


def prefix_keys(tokens: Sequence[int], salt: Hashable = None) -> tuple[int, ...]:
    """A key for each whole chunk of a prompt, which stands for all before it too; for use in one process.

    The last token is always computed, so a chunk that ends with it gives nothing. `salt` parts prompts whose
    KV differs though their tokens are the same.
    """
    keys = []
    key = hash(salt)
    for end in range(CHUNK_TOKENS, len(tokens), CHUNK_TOKENS):
        key = hash((key, *tokens[end - CHUNK_TOKENS : end]))
        keys.append(key)
    return tuple(keys)


class SeenPrefixes:
    """Keys of the prompts sent to one instance, as far as they fit its KV cache; the oldest go first."""

    def __init__(self) -> None:
        self._keys: dict[int, None] = {}
        """In the order of their last use."""

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: Sequence[int], capacity_tokens: int) -> None:
        """Note a prompt; an end is forgotten before its beginning, as in vLLM's block pool."""
        for key in reversed(keys):
            self._keys.pop(key, None)
            self._keys[key] = None
        while len(self._keys) * CHUNK_TOKENS > capacity_tokens:
            del self._keys[next(iter(self._keys))]

    def num_tokens(self, keys: Sequence[int]) -> int:
        """How many tokens at the beginning of a prompt are known."""
        num_chunks = 0
        for key in keys:
            if key not in self._keys:
                break
            num_chunks += 1
        return num_chunks * CHUNK_TOKENS
