"""The target's side of a migration: reserve room for a request, take it in, and run it on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType
from vllm.v1.request import Request, RequestStatus

from llumnix.engine.migration import grammar
from llumnix.engine.migration.grammar import GrammarReplay
from llumnix.engine.migration.import_order import ImportOrder
from llumnix.engine.migration.refusals import engine_refusal
from llumnix.engine.migration.scheduler_access import SchedulerAccess
from llumnix.engine.migration.state import FinalState, PrepareInfo, WorkerState
from llumnix.errors import RefusedError

GRAMMAR_TOKENS_PER_CALL = 256
"""A grammar takes in some 10 microseconds per token: no step should wait for thousands of them."""


@dataclass(slots=True)
class Reservation:
    """Blocks of the target for a request that is on its way; the scheduler does not know it yet."""

    request: Request
    info: PrepareInfo
    num_hit_blocks: int
    """Its first blocks that were here already: not to be sent."""
    block_ids: list[int]
    """By their place in the sequence; those from `num_hit_blocks` on are the transfer's to write."""
    replay: GrammarReplay = field(repr=False)

    @property
    def request_id(self) -> str:
        return self.request.request_id


class Target:
    """Adopts requests into one engine. Every method must run on the engine thread, between two steps."""

    def __init__(self, engine: Any, access: SchedulerAccess) -> None:
        self._engine = engine
        self._access = access
        self._reservations: dict[str, Reservation] = {}

    def reserve(self, info: PrepareInfo, request_id: str, num_ahead_tokens: int = 0) -> Reservation:
        """Room for a request under its new id, and for `num_ahead_tokens` that it may make meanwhile.

        Compiles its grammar, if it has one, in another thread: see is_ready. Raises RefusedError with the
        reason if it does not fit or cannot run here; nothing is left behind then.
        """
        self._refuse_unless_free(info, request_id)
        request = self._rebuild(info, request_id)
        num_tokens, num_hit_tokens = info.num_computed_tokens, 0
        if num_tokens:
            cached, num_hit_tokens = self._access.lookup(request, num_tokens)
            if not self._access.allocate(request, cached, num_hit_tokens, num_tokens):
                raise RefusedError("the target has not enough free blocks")
        reservation = Reservation(
            request=request,
            info=info,
            num_hit_blocks=num_hit_tokens // self._access.block_size,
            block_ids=self._access.block_ids(request_id),
            replay=GrammarReplay(request),
        )
        self._reservations[request_id] = reservation
        if num_tokens and not self.grow(reservation, num_tokens + num_ahead_tokens):
            self.free(reservation)
            raise RefusedError("the target has not enough free blocks")
        return reservation

    def open(self, info: PrepareInfo, request_id: str) -> Reservation:
        """The same without any block, for a request that is computed again from its tokens."""
        request = self._rebuild(info, request_id)
        reservation = Reservation(request, info, 0, [], GrammarReplay(request))
        self._reservations[request_id] = reservation
        return reservation

    def grow(self, reservation: Reservation, num_tokens: int) -> bool:
        """Have blocks for the first `num_tokens`; False, with all as before, if there is no room."""
        self._check_open(reservation)
        num_tokens = min(num_tokens, self._access.scheduler.max_model_len)
        extended = self._access.extend(reservation.request, num_tokens)
        reservation.block_ids = self._access.block_ids(reservation.request_id)
        return extended

    def is_ready(self, reservation: Reservation) -> bool:
        """Whether its grammar is compiled and has caught up; each call feeds it a bounded piece.

        Raises RefusedError if the grammar cannot be compiled or rejects the output.
        """
        if not grammar.is_ready(reservation.request):
            return False
        return reservation.replay.advance(reservation.info.grammar, GRAMMAR_TOKENS_PER_CALL)

    def when_compiled(self, reservation: Reservation, call: Callable[[], object]) -> None:
        """Have `call` made, on any thread, once asking is_ready again may bring more; perhaps at once."""
        grammar.when_compiled(reservation.request, call)

    def adopt(self, reservation: Reservation, final: FinalState) -> None:
        """Run the request on from `final`; its blocks must have been written.

        Raises RefusedError, with the reservation still standing, if that cannot be done.
        """
        self._check_open(reservation)
        request, num_tokens = reservation.request, final.num_computed_tokens
        self._check_final(reservation, final)
        if num_tokens and self._access.num_free_run_slots() <= self._access.num_next_to_run():
            # No slot is held back while blocks are copied: here it would only wait, at its source it runs.
            raise RefusedError("the target has no free run slot any more")
        if final.begun and not grammar.is_ready(request):
            raise RefusedError("its grammar is not compiled yet")
        self._take_outputs(reservation, final)
        if final.begun:
            reservation.replay.finish(final.grammar)
            self._tell_workers(request, final)
        if num_tokens == 0:
            # Queued, or preempted on its way: the scheduler looks its prefix up when it runs it.
            self._access.free_blocks_of(request)
        self._restore(request, final)
        if num_tokens:
            self._access.register(request, num_tokens)
        del self._reservations[reservation.request_id]
        self._access.admit(request)

    def free(self, reservation: Reservation) -> None:
        """Give the blocks back; only once no transfer can still write them."""
        self._check_open(reservation)
        del self._reservations[reservation.request_id]
        self._access.free_blocks_of(reservation.request)

    def reservations(self) -> list[Reservation]:
        """Every reservation that is neither adopted nor freed."""
        return list(self._reservations.values())

    def _refuse_unless_free(self, info: PrepareInfo, request_id: str) -> None:
        if request_id in self._access.scheduler.requests or request_id in self._reservations:
            raise RefusedError(f"the target already has a request {request_id}")
        if (reason := engine_refusal(self._engine)) is not None:
            raise RefusedError(reason)
        num_coming = sum(reservation.info.begun for reservation in self._reservations.values())
        if info.begun and self._access.num_free_run_slots() <= num_coming:
            raise RefusedError("the target has no free run slot")

    def _rebuild(self, info: PrepareInfo, request_id: str) -> Request:
        """vLLM's object for the request, with the output so far and the same block hashes."""
        self._load_adapter(info.request.lora_request)
        sent = msgspec.structs.replace(info.request, request_id=request_id)
        request: Request
        request, _ = self._engine.preprocess_add_request(sent)
        if info.output_token_ids:
            request.append_output_token_ids(info.output_token_ids)
        known = info.last_block_hash
        if known is not None and self._access.last_full_block_hash(request) != known:
            raise RefusedError("source and target hash blocks differently")
        return request

    def _load_adapter(self, lora_request: LoRARequest | None) -> None:
        """A step would load it, too, but the engine dies of one that cannot be loaded there."""
        if lora_request is None:
            return
        if self._engine.vllm_config.lora_config is None:
            raise RefusedError("the target runs without LoRA")
        try:
            self._engine.add_lora(lora_request)
        except Exception as error:
            reason = f"the target cannot load the adapter {lora_request.lora_name!r}: {error}"
            raise RefusedError(reason) from error

    def _check_final(self, reservation: Reservation, final: FinalState) -> None:
        known = reservation.request.num_output_tokens
        if final.first_output > known:
            raise RefusedError(f"output tokens {known} to {final.first_output} are missing")
        if self._access.num_blocks_for(final.num_computed_tokens) > len(reservation.block_ids):
            raise RefusedError("the reservation has too few blocks for the tokens computed")
        if final.num_computed_tokens and final.num_preemptions != reservation.info.num_preemptions:
            raise RefusedError("it was preempted while it was being moved: blocks sent before may be wrong")
        if final.begun and not final.workers:
            raise RefusedError("the workers' states are missing")

    def _take_outputs(self, reservation: Reservation, final: FinalState) -> None:
        request = reservation.request
        known = list(request.output_token_ids[final.first_output :])
        if final.output_token_ids[: len(known)] != known:
            raise RefusedError("source and target disagree on the output so far")
        if new := final.output_token_ids[len(known) :]:
            request.append_output_token_ids(new)

    def _tell_workers(self, request: Request, final: FinalState) -> None:
        states = [msgspec.msgpack.decode(state, type=WorkerState) for state in final.workers]
        seed = next((state.drawn_seed for state in states if state.drawn_seed is not None), None)
        sampling = request.sampling_params
        assert sampling is not None
        if seed is not None and sampling.seed is None:
            sampling.seed = seed
        order = ImportOrder(
            request_id=request.request_id,
            prompt_token_ids=list(request.prompt_token_ids or ()),
            output_token_ids=list(request.output_token_ids),
            num_computed_tokens=final.num_computed_tokens,
            mm_features=request.mm_features,
            sampling_params=sampling,
            lora_request=request.lora_request,
        )
        executor = self._engine.model_executor
        try:
            executor.collective_rpc("llumnix_import_request", args=(order, final.workers))
        except Exception:
            executor.collective_rpc("llumnix_forget_request", args=(request.request_id,))
            raise

    def _restore(self, request: Request, final: FinalState) -> None:
        now = time.monotonic()
        request.events = [
            EngineCoreEvent(EngineCoreEventType(kind), now - age_s) for kind, age_s in final.event_ages_s
        ]
        request.priority = final.priority
        request.num_computed_tokens = final.num_computed_tokens
        request.num_preemptions = final.num_preemptions
        request.num_nans_in_logits = final.num_nans_in_logits
        if final.begun:
            # None once sent: fresh ones would be sent again, as zeros.
            request.prefill_stats = final.prefill_stats
            request.status = RequestStatus.PREEMPTED

    def _check_open(self, reservation: Reservation) -> None:
        if self._reservations.get(reservation.request_id) is not reservation:
            raise RefusedError(f"the reservation for {reservation.request_id} is no longer open")
