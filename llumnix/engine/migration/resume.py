"""Going on with a request whose instance is gone: from its tokens, all else is computed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.v1.engine import EngineCoreRequest

from llumnix.engine.migration.adopt import Reservation, Target
from llumnix.engine.migration.state import FinalState, GrammarProgress, PrepareInfo
from llumnix.errors import RefusedError


class Resumer:
    """Puts requests back as vLLM's own preempted ones: prompt and output split as before, no KV.

    Every method must run on the engine thread, between two steps.
    """

    def __init__(self, engine: Any, target: Target) -> None:
        self._engine = engine
        self._target = target
        self._pending: list[tuple[Reservation, FinalState]] = []
        """Those whose grammar is still being compiled or catching up."""

    def resume(self, sent: EngineCoreRequest, output_token_ids: Sequence[int]) -> None:
        """Have `advance` run `sent` on after these outputs; RefusedError if that cannot be done exactly."""
        sampling = sent.sampling_params
        if sampling is None:
            raise RefusedError("a pooling request has no output to go on from")
        tokens = list(output_token_ids)
        self._refuse_what_cpu_cannot(sent, len(tokens))
        structured = sampling.structured_outputs is not None
        if structured and self._engine.structured_output_manager.reasoner_cls is not None:
            raise RefusedError("with a reasoning parser the progress of its grammar cannot be told")
        grammar = GrammarProgress(sent.reasoning_ended, len(tokens)) if structured else None
        info = PrepareInfo(
            request=sent,
            output_token_ids=tokens,
            num_computed_tokens=0,
            begun=True,
            last_block_hash=None,
            num_preemptions=0,
            grammar=grammar,
        )
        states: list[bytes] = self._engine.model_executor.collective_rpc(
            "llumnix_replayed_state", args=(sampling.seed, len(tokens))
        )
        final = FinalState(
            first_output=len(tokens),
            output_token_ids=[],
            num_computed_tokens=0,
            begun=True,
            priority=sent.priority,
            num_preemptions=0,
            event_ages_s=[],
            prefill_stats=None,
            num_nans_in_logits=0,
            grammar=grammar,
            workers=states,
        )
        self._pending.append((self._target.open(info, sent.request_id), final))

    def _refuse_what_cpu_cannot(self, sent: EngineCoreRequest, num_outputs: int) -> None:
        config = self._engine.vllm_config
        seeded = sent.sampling_params is not None and sent.sampling_params.seed is not None
        num_tokens = len(sent.prompt_token_ids or ()) + num_outputs
        in_one_chunk = num_tokens <= config.scheduler_config.max_num_batched_tokens
        if seeded and not in_one_chunk and config.device_config.device_type == "cpu":
            raise RefusedError("vLLM on CPU cannot draw from a seed in the middle of a prefill")

    def advance(self) -> list[tuple[str, int, str]]:
        """Adopt what is ready; (request id, API server, reason) of those that cannot go on after all."""
        failed: list[tuple[str, int, str]] = []
        waiting: list[tuple[Reservation, FinalState]] = []
        for reservation, final in self._pending:
            try:
                if self._target.is_ready(reservation):
                    self._target.adopt(reservation, final)
                else:
                    waiting.append((reservation, final))
            except RefusedError as error:
                self._target.free(reservation)
                failed.append((reservation.request_id, reservation.request.client_index, str(error)))
        self._pending = waiting
        return failed

    def forget(self, request_ids: Sequence[str]) -> None:
        """Aborted before they could go on."""
        gone = [r for r, _ in self._pending if r.request_id in request_ids]
        for reservation in gone:
            self._target.free(reservation)
        self._pending = [(r, final) for r, final in self._pending if r not in gone]

    @property
    def is_waiting(self) -> bool:
        return bool(self._pending)
