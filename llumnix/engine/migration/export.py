"""The source's side of a migration: take a request out of an engine with all that it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request

from llumnix.engine.migration import grammar
from llumnix.engine.migration.refusals import request_refusal
from llumnix.engine.migration.scheduler_access import SchedulerAccess
from llumnix.engine.migration.state import FinalState, PrepareInfo
from llumnix.errors import RefusedError, UnknownTargetError


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a request stands between two steps."""

    num_output_tokens: int
    num_settled_tokens: int
    """Tokens whose KV no step in flight may still write."""
    num_preemptions: int
    """If this has grown, blocks copied earlier may have been another request's by the time they were read."""
    queued: bool
    quiet: bool
    frozen: bool


@dataclass(frozen=True, slots=True)
class _Frozen:
    request: Request
    num_preemptions: int
    queued: bool
    earlier_step: int


class Source:
    """Exports requests of one engine. Every method must run on the engine thread, between two steps."""

    def __init__(self, engine: Any, access: SchedulerAccess) -> None:
        self._engine = engine
        self._access = access
        self._frozen: dict[str, _Frozen] = {}
        self._holds: dict[int, list[KVCacheBlock]] = {}
        self._next_hold = 0

    def refusal(self, request_id: str) -> str | None:
        """Why the request cannot be moved now, in words for an operator; None if it can."""
        request = self._access.live(request_id)
        if request is None:
            return "it is finished"
        return request_refusal(self._engine, self._access, request)

    def progress(self, request_id: str) -> Progress | None:
        """Where the request stands; None once it is finished or aborted."""
        request = self._access.live(request_id)
        if request is None:
            self._frozen.pop(request_id, None)
            return None
        self._keep_back_if_preempted(request)
        return Progress(
            num_output_tokens=request.num_output_tokens,
            num_settled_tokens=self._access.settled_tokens(request),
            num_preemptions=request.num_preemptions,
            queued=self._access.queued(request),
            quiet=self._access.is_quiet(request),
            frozen=request_id in self._frozen,
        )

    def identity(self, request_id: str) -> PrepareInfo:
        """What PREPARE sends; raises RefusedError or UnknownTargetError."""
        request = self._live(request_id)
        if (reason := request_refusal(self._engine, self._access, request)) is not None:
            raise RefusedError(reason)
        access = self._access
        return PrepareInfo(
            request=_as_sent(request),
            output_token_ids=list(request.output_token_ids),
            num_computed_tokens=access.settled_tokens(request),
            begun=access.begun(request),
            last_block_hash=access.last_full_block_hash(request),
            num_preemptions=request.num_preemptions,
            grammar=grammar.progress(self._engine.structured_output_manager, request),
        )

    def copyable_blocks(self, request_id: str, first: int = 0) -> list[tuple[int, int]]:
        """(place in the sequence, block id) of its full blocks from place `first` on that no step may still
        write; they stay as they are while the request runs."""
        request = self._live(request_id)
        num_full = self._access.settled_tokens(request) // self._access.block_size
        return list(enumerate(self._access.block_ids(request_id)))[first:num_full]

    def last_blocks(self, request_id: str, first: int = 0) -> list[tuple[int, int]]:
        """The same of a frozen, quiet request, with its last, partly filled block."""
        request = self._settled(request_id)
        num_blocks = self._access.num_blocks_for(request.num_computed_tokens)
        return list(enumerate(self._access.block_ids(request_id)))[first:num_blocks]

    def hold(self, block_ids: Sequence[int]) -> int:
        """Keep blocks from being used again while a transfer reads them; returns what drop_hold takes."""
        self._next_hold += 1
        self._holds[self._next_hold] = self._access.pin(block_ids)
        return self._next_hold

    def drop_hold(self, hold: int) -> None:
        """The transfer reads no more; raises KeyError for a hold that was dropped before."""
        self._access.unpin(self._holds.pop(hold))

    def freeze(self, request_id: str) -> None:
        """Run the request no more; the others go on. Tokens of steps in flight still come: see is_quiet."""
        if request_id in self._frozen:
            return
        request = self._live(request_id)
        queued = self._access.queued(request)
        earlier_step = 0
        if queued:
            self._access.take_from_queue(request)
        else:
            earlier_step = self._access.hold_back(request)
        self._frozen[request_id] = _Frozen(request, request.num_preemptions, queued, earlier_step)

    def unfreeze(self, request_id: str) -> None:
        """Have the request go on here; nothing to do if it is finished or was not frozen."""
        frozen = self._frozen.pop(request_id, None)
        if frozen is None or self._access.live(request_id) is not frozen.request:
            return
        if frozen.queued:
            self._access.requeue(frozen.request)
        else:
            self._access.let_go(frozen.request, frozen.earlier_step)

    def keep_back_preempted(self) -> None:
        """Before a step: what preempted a frozen request since the last one must not have it run on."""
        for frozen in list(self._frozen.values()):
            if not frozen.request.is_finished():
                self._keep_back_if_preempted(frozen.request)

    def _keep_back_if_preempted(self, request: Request) -> None:
        """A frozen request that vLLM put back into its queue would run on, perhaps beside another run."""
        frozen = self._frozen.get(request.request_id)
        if frozen is None or frozen.queued or not self._access.queued(request):
            return
        self._access.let_go(request, frozen.earlier_step)
        self._access.take_from_queue(request)
        self._frozen[request.request_id] = replace(frozen, queued=True)

    def is_quiet(self, request_id: str) -> bool:
        """Whether the request is alive and no step in flight concerns it."""
        request = self._access.live(request_id)
        return request is not None and self._access.is_quiet(request)

    def final_state(self, request_id: str, first_output: int = 0) -> FinalState:
        """What COMMIT sends of a frozen, quiet request; `first_output` is what the target knows already.

        Raises RefusedError if it has been preempted since it was frozen, or can no longer be moved.
        """
        request = self._settled(request_id)
        if (reason := request_refusal(self._engine, self._access, request)) is not None:
            raise RefusedError(reason)
        begun = self._access.begun(request)
        now = time.monotonic()
        return FinalState(
            first_output=first_output,
            output_token_ids=list(request.output_token_ids[first_output:]),
            num_computed_tokens=request.num_computed_tokens,
            begun=begun,
            priority=request.priority,
            num_preemptions=request.num_preemptions,
            event_ages_s=[(int(event.type), now - event.timestamp) for event in request.events],
            prefill_stats=request.prefill_stats,
            num_nans_in_logits=request.num_nans_in_logits,
            grammar=grammar.progress(self._engine.structured_output_manager, request),
            workers=self._worker_states(request_id) if begun else [],
        )

    def release(self, request_id: str) -> None:
        """The target runs it now: forget it here, without a word to its client, and free its blocks.

        That it may have been preempted since COMMIT is of no consequence any more.
        """
        if request_id not in self._frozen:
            raise RefusedError(f"request {request_id} is not frozen")
        del self._frozen[request_id]
        self._access.drop(request_id)

    def frozen_requests(self) -> list[Request]:
        """Requests that are frozen; queued ones among them are in none of the scheduler's queues."""
        return [f.request for f in self._frozen.values() if not f.request.is_finished()]

    def frozen_in_no_queue(self) -> list[Request]:
        """Those that waited when they were frozen, and still do; running ones stay in `running`."""
        return [request for request in self.frozen_requests() if self._access.queued(request)]

    def held_blocks(self) -> list[KVCacheBlock]:
        """Every block of every hold."""
        return [block for blocks in self._holds.values() for block in blocks]

    def _worker_states(self, request_id: str) -> list[bytes]:
        states: list[bytes] = self._engine.model_executor.collective_rpc(
            "llumnix_export_request", args=(request_id,)
        )
        return states

    def _live(self, request_id: str) -> Request:
        request = self._access.live(request_id)
        if request is None:
            raise UnknownTargetError(f"request {request_id} is finished or was never here")
        return request

    def _settled(self, request_id: str) -> Request:
        """The frozen, quiet request; raises RefusedError otherwise."""
        request = self._live(request_id)
        frozen = self._frozen.get(request_id)
        if frozen is None or frozen.request is not request:
            raise RefusedError(f"request {request_id} is not frozen")
        if request.num_preemptions != frozen.num_preemptions:
            raise RefusedError("it was preempted while it was being moved")
        if not self._access.is_quiet(request):
            raise RefusedError(f"tokens of request {request_id} are still in flight")
        return request


def _as_sent(request: Request) -> EngineCoreRequest:
    """The message that vLLM's API server sent for the request, as far as the engine needs it."""
    structured = request.structured_output_request
    return EngineCoreRequest(
        request_id=request.request_id,
        prompt_token_ids=request.prompt_token_ids,
        mm_features=request.mm_features or None,
        sampling_params=request.sampling_params,
        pooling_params=None,
        arrival_time=request.arrival_time,
        lora_request=request.lora_request,
        cache_salt=request.cache_salt,
        data_parallel_rank=None,
        prompt_is_token_ids=request.prompt_is_token_ids,
        client_index=request.client_index,
        priority=request.priority,
        trace_headers=request.trace_headers,
        reasoning_ended=structured.reasoning_ended if structured else None,
        reasoning_parser_kwargs=structured.reasoning_parser_kwargs if structured else None,
        session_id=request.session_id,
        kv_hints=request.kv_hints,
    )
