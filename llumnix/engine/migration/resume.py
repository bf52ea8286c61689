"""Going on with a request whose instance is gone: from its tokens, all else is computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vllm.sampling_params import SamplingParams, SamplingType
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request

from llumnix.engine.migration import grammar
from llumnix.engine.migration.adopt import GRAMMAR_TOKENS_PER_CALL, Reservation, Target
from llumnix.engine.migration.grammar import OutputReplay
from llumnix.engine.migration.state import FinalState, PrepareInfo
from llumnix.errors import RefusedError


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """Its grammar is still being compiled, or catching up."""

    reservation: Reservation
    final: FinalState
    replay: OutputReplay | None
    """None without structured output."""


class Resumer:
    """Puts requests back as vLLM's own preempted ones: prompt and output split as before, no KV.

    Every method must run on the engine thread, between two steps.
    """

    def __init__(
        self,
        engine: Any,
        target: Target,
        on_engine_thread: Callable[[Callable[[], object]], None],
        cannot_resume: Callable[[str, int, str], None],
    ) -> None:
        """`cannot_resume` is told (request id, API server, reason) of those that cannot go on after all."""
        self._engine = engine
        self._target = target
        self._on_engine_thread = on_engine_thread
        self._cannot_resume = cannot_resume
        self._pending: list[_Pending] = []
        self._will_advance = False
        """Whether this has asked the engine thread to come back."""

    def resume(self, sent: EngineCoreRequest, output_token_ids: Sequence[int]) -> None:
        """Run `sent` on after these outputs, at once or soon; RefusedError if that cannot be done exactly."""
        sampling = sent.sampling_params
        if sampling is None:
            raise RefusedError("a pooling request has no output to go on from")
        tokens = list(output_token_ids)
        structured = sampling.structured_outputs is not None
        # A grammar is fed as it was at first, token by token beside the request that grows by them.
        info = _info(sent, [] if structured else tokens)
        final = _final(sent, tokens, self._worker_states(sampling, len(tokens)))
        reservation = self._target.open(info, sent.request_id)
        replay = None
        if structured:
            replay = OutputReplay(self._engine.structured_output_manager, reservation.request, tokens)
        one = _Pending(reservation, final, replay)
        self._pending.append(one)
        if grammar.is_compiling(reservation.request):
            again = partial(self._on_engine_thread, partial(self._advance, [one]))
            self._target.when_compiled(reservation, again)
        self._advance([one])

    def advance(self) -> None:
        """Adopt what is ready; to be called after each step, and comes back by itself while there is none."""
        self._advance(list(self._pending))

    def forget(self, request_ids: Sequence[str]) -> None:
        """Aborted before they could go on."""
        gone = [one for one in self._pending if one.reservation.request_id in request_ids]
        for one in gone:
            self._target.free(one.reservation)
        self._pending = [one for one in self._pending if one not in gone]

    def requests(self) -> list[Request]:
        """Those that cannot go on yet."""
        return [one.reservation.request for one in self._pending]

    @property
    def is_waiting(self) -> bool:
        return bool(self._pending)

    def _advance(self, those: list[_Pending]) -> None:
        for one in those:
            if one not in self._pending:  # aborted, or adopted after a step
                continue
            reservation = one.reservation
            try:
                if not self._is_ready(one):
                    continue
                self._target.adopt(reservation, one.final)
            except RefusedError as error:
                self._target.free(reservation)
                self._cannot_resume(reservation.request_id, reservation.request.client_index, str(error))
            self._pending.remove(one)
        self._come_back_if_idle()

    def _is_ready(self, one: _Pending) -> bool:
        """Each call feeds its grammar a bounded piece."""
        if not self._target.is_ready(one.reservation):
            return False
        return one.replay is None or one.replay.advance(GRAMMAR_TOKENS_PER_CALL)

    def _come_back_if_idle(self) -> None:
        """With no step to make, nobody is kept waiting by the next piece."""
        if self._will_advance or self._engine.scheduler.has_requests() or self._engine.batch_queue:
            return
        if all(grammar.is_compiling(one.reservation.request) for one in self._pending):
            return
        self._will_advance = True
        self._on_engine_thread(self._advance_again)

    def _advance_again(self) -> None:
        self._will_advance = False
        self.advance()

    def _worker_states(self, sampling: SamplingParams, num_tokens: int) -> list[bytes]:
        config = self._engine.vllm_config
        seeded = sampling.sampling_type == SamplingType.RANDOM_SEED
        if seeded and config.speculative_config is not None and not config.use_v2_model_runner:
            raise RefusedError(
                "what a seed has drawn under speculative decoding cannot be told from the tokens"
            )
        states: list[bytes] = self._engine.model_executor.collective_rpc(
            "llumnix_replayed_state", args=(sampling.seed if seeded else None, num_tokens)
        )
        return states


def _info(sent: EngineCoreRequest, output_token_ids: list[int]) -> PrepareInfo:
    return PrepareInfo(
        request=sent,
        output_token_ids=output_token_ids,
        num_computed_tokens=0,
        begun=True,
        last_block_hash=None,
        num_preemptions=0,
        grammar=None,
    )


def _final(sent: EngineCoreRequest, output_token_ids: list[int], workers: list[bytes]) -> FinalState:
    return FinalState(
        first_output=0,
        output_token_ids=output_token_ids,
        num_computed_tokens=0,
        begun=True,
        priority=sent.priority,
        num_preemptions=0,
        event_ages_s=[],
        prefill_stats=None,
        num_nans_in_logits=0,
        grammar=None,
        workers=workers,
    )
