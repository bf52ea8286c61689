"""Hardware profiles: how long an engine step takes, and how many KV blocks there are, on a named machine.

Imports nothing heavy: the configuration checks profile names with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

_GIB = 1 << 30


class Chunk(NamedTuple):
    """Tokens of one prompt that a step computes: places `start` up to `end` of the sequence."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """Coefficients of one model on one machine; all times in milliseconds.

    Prefill of n tokens takes `prefill_ms + prefill_ms_per_token * n + prefill_ms_per_token2 * n**2`, a decode
    step `decode_ms + decode_ms_per_request * batch + decode_ms_per_kv_token * tokens`.
    """

    name: str
    num_blocks: int
    """Usable KV blocks of `block_size` tokens."""
    prefill_ms: float
    prefill_ms_per_token: float
    prefill_ms_per_token2: float
    decode_ms: float
    decode_ms_per_request: float
    decode_ms_per_kv_token: float
    kv_bytes_per_token: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_batched_tokens: int = 2048
    """Of one step: vLLM's default on such GPUs."""
    copy_bytes_per_s: float = 2.2 * _GIB
    """Migration copies; Gloo over 64 Gb/s in the paper (its Figure 10)."""
    copy_fixed_ms: float = 28.0
    """Of each copy, whatever its size."""
    copy_slowdown: float = 1.01
    """Factor on steps while a copy runs (0.4-2 % in the paper's section 6.2)."""

    def decode_step_ms(self, batch: int, num_kv_tokens: int) -> float:
        """A step in which `batch` requests with this many tokens in all make a token each."""
        per_request = self.decode_ms_per_request * batch
        return self.decode_ms + per_request + self.decode_ms_per_kv_token * num_kv_tokens

    def step_ms(self, batch: int, num_kv_tokens: int, chunks: Iterable[Chunk]) -> float:
        """Any step. A chunk that continues a prompt attends to what is before it; beside a decode it does not
        pay the fixed cost of a prefill."""
        prefill = 0.0
        for start, end in chunks:
            prefill += self.prefill_ms_per_token * (end - start)
            prefill += self.prefill_ms_per_token2 * (end * end - start * start)
        if batch:
            return self.decode_step_ms(batch, num_kv_tokens) + prefill
        return self.prefill_ms + prefill

    def copy_s(self, num_blocks: int) -> float:
        """One copy of a migration, in seconds."""
        num_bytes = num_blocks * self.block_size * self.kv_bytes_per_token
        return self.copy_fixed_ms / 1e3 + num_bytes / self.copy_bytes_per_s


PROFILES: dict[str, HardwareProfile] = {
    profile.name: profile
    for profile in (
        # LLaMA-7B on one A10 24 GB, as the paper's testbed ran it (its section 6.1).
        HardwareProfile(
            name="a10-llama-7b",
            num_blocks=851,
            prefill_ms=5.6,
            prefill_ms_per_token=0.2028,
            prefill_ms_per_token2=5.09e-6,
            decode_ms=41.3,
            decode_ms_per_request=0.12,
            decode_ms_per_kv_token=0.0009,
            kv_bytes_per_token=512 << 10,
        ),
        # LLaMA-30B on four A10 (TP 4). The paper gives a step of 59-66 ms up to 8k tokens and no capacity:
        # what 65 GB of weights leave of 4 x 22.5 GiB at 90 %, less 4 GiB of activations, is 690 blocks.
        HardwareProfile(
            name="a10x4-llama-30b",
            num_blocks=690,
            prefill_ms=12.2,
            prefill_ms_per_token=0.4116,
            prefill_ms_per_token2=1.82e-6,
            decode_ms=58.7,
            decode_ms_per_request=0.12,
            decode_ms_per_kv_token=0.0009,
            kv_bytes_per_token=60 * 2 * 6656 * 2,
        ),
    )
}


def find_profile(name: str) -> HardwareProfile:
    """A built-in profile, or one from a JSON file that `llumnix-sim profile` wrote; raises ValueError."""
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if path.suffix != ".json":
        raise ValueError(f"unknown hardware profile {name!r}: expected {', '.join(PROFILES)} or a .json file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return _checked(HardwareProfile(**values))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"hardware profile {name!r} cannot be read: {error}") from None


def save_profile(profile: HardwareProfile, path: Path) -> None:
    """Write a JSON file that find_profile reads."""
    path.write_text(json.dumps(asdict(profile), indent=2) + "\n", encoding="utf-8")


def _checked(profile: HardwareProfile) -> HardwareProfile:
    for field in fields(profile):
        value = getattr(profile, field.name)
        if field.name == "name":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"{field.name} = {value!r}, expected a number of 0 or more")
    if min(profile.num_blocks, profile.block_size, profile.max_num_seqs, profile.max_batched_tokens) < 1:
        raise ValueError("num_blocks, block_size, max_num_seqs and max_batched_tokens must be 1 or more")
    if profile.copy_bytes_per_s <= 0 or profile.prefill_ms + profile.decode_ms <= 0:
        raise ValueError("copy_bytes_per_s and the fixed cost of a step must be above 0")
    return profile
