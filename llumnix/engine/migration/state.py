"""What two llumlets tell each other about a request that moves: fixed types, msgpack, never pickle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

_Wire = TypeVar("_Wire", bound=msgspec.Struct)


class GrammarProgress(msgspec.Struct, frozen=True):
    """How far a structured output has come."""

    reasoning_ended: bool | None
    num_fed_tokens: int
    """Of the output's last tokens, how many the grammar has taken in."""


class PrepareInfo(msgspec.Struct, frozen=True):
    """A request's identity, and how far it had come when its migration began."""

    request: EngineCoreRequest
    """As vLLM's API server sent it, under the source's request id; vLLM's own encoding."""
    output_token_ids: list[int]
    num_computed_tokens: int
    """Tokens whose KV is settled: no step in flight may still write it."""
    begun: bool
    """False if no step has run for it: it is queued and takes nothing but its identity along."""
    last_block_hash: bytes | None
    """Of the last full block of its tokens; hashes are chained, so one stands for all before it."""
    num_preemptions: int
    grammar: GrammarProgress | None


class FinalState(msgspec.Struct, frozen=True):
    """All that a frozen, quiet request is besides its identity and KV blocks."""

    first_output: int
    output_token_ids: list[int]
    """The output from `first_output` on; the target knows what is before it from PrepareInfo."""
    num_computed_tokens: int
    begun: bool
    priority: int
    num_preemptions: int
    event_ages_s: list[tuple[int, float]]
    """Events not yet sent out (vLLM's type, age): their times are of the source's own clock."""
    prefill_stats: PrefillStats | None
    num_nans_in_logits: int
    grammar: GrammarProgress | None
    workers: list[bytes]
    """One WorkerState per rank, in rank order; empty if the model runner keeps nothing for the request."""


class PackedTensor(msgspec.Struct, frozen=True):
    """A tensor of a CPU as bytes."""

    dtype: str
    shape: list[int]
    data: bytes


class PromptLogprobs(msgspec.Struct, frozen=True):
    """Prompt logprobs gathered by the prefill so far."""

    token_ids: PackedTensor
    logprobs: PackedTensor
    ranks: PackedTensor


class WorkerState(msgspec.Struct, frozen=True):
    """What one rank's model runner keeps for a request and cannot rebuild from its tokens."""

    generator: bytes | None = None
    """State of the request's own torch.Generator (model runner V1, seeded requests)."""
    drawn_seed: int | None = None
    """The seed that model runner V2 drew for a request without one."""
    awaits_prompt_logprobs: bool = False
    prompt_logprobs: PromptLogprobs | None = None


class WorkerDescription(msgspec.Struct, frozen=True):
    """What one rank says of its model and its KV cache."""

    rank: int
    runner: str
    device: str
    attention: list[str]
    kv_format: str
    weights: str


def encode(message: msgspec.Struct) -> list[bytes]:
    """Frames for the wire: msgpack first, then the buffers of larger tensors (multimodal inputs)."""
    return [bytes(frame) for frame in MsgpackEncoder().encode(message)]


def decode(frames: Sequence[bytes], wire_type: type[_Wire]) -> _Wire:
    """The message in `frames`; raises msgspec.ValidationError for anything else."""
    decoder: Any = MsgpackDecoder(wire_type, share_mem=False)
    message: _Wire = decoder.decode(list(frames))
    return message
