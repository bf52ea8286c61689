"""What a migration reads from and changes in vLLM's scheduler, on the engine thread between two steps.

Every private name of vLLM's scheduler, block manager and request that the migration package uses stands in
this module (vllm.v1.core.sched.scheduler.Scheduler, vllm.v1.core.kv_cache_manager.KVCacheManager).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

_NEVER = sys.maxsize


class SchedulerAccess:
    """One scheduler's requests and blocks; every method must run on the engine thread."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.kv = scheduler.kv_cache_manager
        self.pool = self.kv.block_pool
        self.managers = self.kv.coordinator.single_type_managers
        self.block_size: int = scheduler.block_size

    # ---- requests ---------------------------------------------------------------------------------------

    def live(self, request_id: str) -> Request | None:
        """The request, unless it is unknown or finished."""
        request = self.scheduler.requests.get(request_id)
        return None if request is None or request.is_finished() else request

    def is_quiet(self, request: Request) -> bool:
        """Whether no step in flight can still add a token to it or write its KV."""
        return (
            request.num_in_flight_tokens == 0
            and request.num_output_placeholders == 0
            and request.num_stale_output_tokens == 0
        )

    def settled_tokens(self, request: Request) -> int:
        """Tokens whose KV no step in flight may still write."""
        return max(0, request.num_computed_tokens - request.num_in_flight_tokens)

    def begun(self, request: Request) -> bool:
        """Whether a step has ever run for it."""
        return request.status in (RequestStatus.RUNNING, RequestStatus.PREEMPTED)

    def queued(self, request: Request) -> bool:
        return request.status != RequestStatus.RUNNING

    def hold_back(self, request: Request) -> int:
        """Schedule a running request no more; it keeps its run slot. Returns what let_go needs.

        It stays in `running`, so that no other request takes its slot in the model runner (V2 would fail),
        and so that vLLM still finishes, aborts or preempts it as any other.
        """
        earlier = request.next_decode_eligible_step
        request.next_decode_eligible_step = _NEVER
        return earlier

    def let_go(self, request: Request, earlier: int) -> None:
        request.next_decode_eligible_step = earlier

    def take_from_queue(self, request: Request) -> None:
        """Take a waiting request out of its queue; the scheduler still knows it by its id."""
        scheduler = self.scheduler
        for queue in (scheduler.waiting, scheduler.kv_holding_waiting):
            queue.remove_requests({request})
        scheduler.deferred_waiting.discard(request)

    def enqueue(self, request: Request) -> None:
        """Put a waiting request into the queue that vLLM would have it in, without another QUEUED event."""
        self.scheduler._enqueue_waiting_request(request)

    def requeue(self, request: Request) -> None:
        """Put a request back that take_from_queue took: by priority and arrival, or first if first come first
        served."""
        if self.scheduler.policy == SchedulingPolicy.PRIORITY or request.num_computed_tokens > 0:
            self.enqueue(request)
            return
        if self.scheduler._is_blocked_waiting_status(request.status):
            self.scheduler.deferred_waiting.add(request)
        self.scheduler.waiting.prepend_request(request)

    def admit(self, request: Request) -> None:
        """Have the scheduler know a request that was built elsewhere, and queue it."""
        self.scheduler.requests[request.request_id] = request
        self.enqueue(request)

    def drop(self, request_id: str) -> None:
        """End a request without any output to its client; its blocks are freed."""
        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def num_free_run_slots(self) -> int:
        scheduler = self.scheduler
        taken = len(scheduler.running) + scheduler.num_waiting_for_streaming_input
        return scheduler.max_num_active_reqs - taken

    def num_next_to_run(self) -> int:
        """Waiting requests that get a run slot before any other: those that hold their KV already."""
        return len(self.scheduler.kv_holding_waiting)

    def last_full_block_hash(self, request: Request) -> bytes | None:
        num_blocks = request.num_tokens // self.scheduler.hash_block_size
        return bytes(request.block_hashes[num_blocks - 1]) if num_blocks and request.block_hashes else None

    # ---- blocks -----------------------------------------------------------------------------------------

    def block_ids(self, request_id: str) -> list[int]:
        """Ids of the blocks held under a request's id, by their place in its sequence (one KV group)."""
        return [block.block_id for block in self.managers[0].req_to_blocks.get(request_id, ())]

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def num_blocks_of_next_step(self) -> int:
        """New blocks that the next step takes for running requests, as Scheduler.schedule will count them."""
        budget, num_blocks = self.scheduler.max_num_scheduled_tokens, 0
        for request in self.scheduler.running:
            num_tokens = min(self._next_tokens(request), budget)
            if num_tokens > 0:
                budget -= num_tokens
                num_held = len(self.block_ids(request.request_id))
                num_blocks += max(0, self.num_blocks_for(request.num_computed_tokens + num_tokens) - num_held)
        return num_blocks

    def _next_tokens(self, request: Request) -> int:
        """Tokens that the next step wants to compute for a running request, were it alone."""
        scheduler = self.scheduler
        computed, on_their_way = request.num_computed_tokens, request.num_output_placeholders
        num_most = request.num_prompt_tokens + request.max_tokens
        if on_their_way and computed + 2 - on_their_way >= num_most:
            return 0  # the step in flight brings its last token
        if scheduler.current_step + 1 < request.next_decode_eligible_step:
            return 0
        num_tokens = request.num_tokens_with_spec + on_their_way - computed
        room = scheduler.max_model_len - computed - scheduler.num_sampled_tokens_per_step
        return int(min(num_tokens, room, self._longest_chunk()))

    def _longest_chunk(self) -> int:
        """Tokens of a prefill that one step takes at most, beside its budget."""
        config, num_requests = self.scheduler.scheduler_config, sum(self.scheduler.get_request_counts())
        limit = config.long_prefill_token_threshold
        if not limit or num_requests == 1:
            return config.max_num_batched_tokens
        if self.scheduler.adaptive_long_prefill_threshold:
            return max(limit, config.max_num_batched_tokens // num_requests)
        return limit

    def lookup(self, request: Request, num_tokens: int) -> tuple[Any, int]:
        """(cached blocks, their tokens) of the prefix cache that lie within the first `num_tokens`."""
        blocks, num_hit_tokens, _ = self.kv.get_computed_blocks(request)
        num_hit_tokens = min(num_hit_tokens, num_tokens) // self.block_size * self.block_size
        return self.kv.truncate_computed_blocks(blocks, num_hit_tokens), num_hit_tokens

    def allocate(self, request: Request, cached: Any, num_hit_tokens: int, num_tokens: int) -> bool:
        """Take cached and new blocks for a sequence's first `num_tokens` (> 0); False if it cannot fit."""
        allocated = self.kv.allocate_slots(
            request,
            0,
            num_new_computed_tokens=num_hit_tokens,
            new_computed_blocks=cached,
            num_external_computed_tokens=num_tokens - num_hit_tokens,
            delay_cache_blocks=True,
            full_sequence_must_fit=True,
            skip_zeroing_group_ids=tuple(range(len(self.managers))),
        )
        return allocated is not None

    def extend(self, request: Request, num_tokens: int) -> bool:
        """Have blocks for `num_tokens` in all; False if there is no room."""
        num_held = len(self.block_ids(request.request_id))
        if self.num_blocks_for(num_tokens) <= num_held:
            return True
        if self.kv.allocate_slots(request, num_tokens, delay_cache_blocks=True) is None:
            return False
        # Where new blocks are zeroed, the next step would wipe what a transfer has written by then.
        new = set(self.block_ids(request.request_id)[num_held:])
        for manager in self.managers:
            manager.new_block_ids = [block for block in manager.new_block_ids if block not in new]
        return True

    def register(self, request: Request, num_tokens: int) -> None:
        """Offer the full blocks among the first `num_tokens` to the prefix cache."""
        self.kv.cache_blocks(request, num_tokens)

    def free_blocks_of(self, request: Request) -> None:
        self.kv.free(request)

    def pin(self, block_ids: Iterable[int]) -> list[KVCacheBlock]:
        """Keep blocks from being handed out again, whatever happens to their request; unpin ends it."""
        blocks = [self.pool.blocks[block_id] for block_id in block_ids]
        self.pool.touch(blocks)
        return blocks

    def unpin(self, blocks: Sequence[KVCacheBlock]) -> None:
        self.pool.free_blocks(reversed(blocks))
