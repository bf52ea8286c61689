"""A request's state in model runner V2 (vllm.v1.worker.gpu), with its private names.

V2 takes a resumed request as a new one whose prefill holds its output too (NewRequestData.prefill_token_ids),
and rebuilds all from that: penalties, min_tokens, bad words. Its random numbers are a function of seed and
position. So nothing need be put into the runner, and only a seed that it drew itself need be taken out of it.
"""

from __future__ import annotations

from typing import Any

from llumnix.engine.migration.import_order import ImportOrder
from llumnix.engine.migration.state import WorkerState


def export_request(runner: Any, request_id: str) -> WorkerState:
    """The seed that the runner drew, where sampling goes by it; a preempted request has none."""
    index = runner.req_states.req_id_to_index.get(request_id)
    sampler = runner.sampler  # None on all but the last pipeline stage
    if index is None or sampler is None or _samples_without_seeds(sampler):
        return WorkerState()
    states = sampler.sampling_states
    if states.seeds_set[index]:
        return WorkerState()
    return WorkerState(drawn_seed=int(states.seeds.np[index]))


def import_request(runner: Any, order: ImportOrder, state: WorkerState) -> None:
    """Nothing to do: the step that resumes the request brings all of it."""


def forget_request(runner: Any, request_id: str) -> None:
    """Nothing was put in."""


def replayed_state(runner: Any, seed: int | None, num_tokens: int) -> WorkerState:
    """Random numbers are a function of seed and position: nothing to bring."""
    return WorkerState()


def _samples_without_seeds(sampler: Any) -> bool:
    """A fused sampler draws from the device's own generator, and an explicit seed in a batch turns it off."""
    return bool(sampler.use_flashinfer or sampler.use_xpu_sampler)
