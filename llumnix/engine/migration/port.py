"""One engine's end of all migrations: what the llumlet holds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from vllm.v1.request import Request

from llumnix.core.victims import Candidate
from llumnix.engine.migration.adopt import Target
from llumnix.engine.migration.export import Source
from llumnix.engine.migration.fingerprint import Fingerprint, fingerprint
from llumnix.engine.migration.integrity import check_integrity
from llumnix.engine.migration.scheduler_access import SchedulerAccess


class MigrationPort:
    """Source and target side of one engine, which must have been built with worker.EXTENSION.

    Every method of it and of its sides must run on the engine thread, between two steps.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._access = SchedulerAccess(engine.scheduler)
        self.source = Source(engine, self._access)
        self.target = Target(engine, self._access)

    @property
    def block_size(self) -> int:
        return self._access.block_size

    def fingerprint(self) -> Fingerprint:
        """What another instance must have in common with this one; asks every worker."""
        return fingerprint(self._engine)

    def kv_views(self) -> list[torch.Tensor]:
        """One view per layer, dimension 0 the block id; for an engine whose only worker is in this process.

        With more workers each rank's transport takes its own views, inside the worker.
        """
        executor = self._engine.vllm_config.parallel_config.distributed_executor_backend
        if executor != "uni":
            raise ValueError(f"with the {executor} executor the KV cache is not in this process")
        views: list[torch.Tensor]
        (views,) = self._engine.model_executor.collective_rpc("llumnix_kv_views")
        return views

    def num_tokens(self, request_id: str) -> int:
        """Prompt and output tokens of a live request."""
        request = self._access.live(request_id)
        return 0 if request is None else request.num_tokens

    def candidates(self, may_move: Callable[[str], bool], *, waiting: bool) -> list[Candidate]:
        """Live requests that could leave, in batch order; with `waiting` those of the queue behind them."""
        scheduler = self._access.scheduler
        queued = chain(scheduler.kv_holding_waiting, scheduler.waiting) if waiting else ()
        return [
            self._candidate(request)
            for request in chain(scheduler.running, queued)
            if may_move(request.request_id)
        ]

    def _candidate(self, request: Request) -> Candidate:
        is_running = not self._access.queued(request)
        num_blocks = self._access.num_blocks_for(request.num_tokens)
        if is_running:
            num_blocks = len(self._access.block_ids(request.request_id))
        return Candidate(request.request_id, request.priority, request.num_tokens, num_blocks, is_running)

    def held_blocks(self, request_id: str) -> int | None:
        """Blocks that a running request holds; None if it does not run."""
        request = self._access.live(request_id)
        if request is None or self._access.queued(request):
            return None
        return len(self._access.block_ids(request_id))

    def num_missing_blocks(self) -> int:
        """Free blocks that the next step lacks for the requests that run; negative if it leaves some."""
        return self._access.num_blocks_of_next_step() - int(self._access.pool.get_num_free_blocks())

    def check_integrity(self) -> list[str]:
        """What is wrong with the books of blocks and requests; empty if nothing is."""
        return check_integrity(self._access, self.source, self.target)
