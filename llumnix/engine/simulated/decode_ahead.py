"""Many decode steps at once, with the result that as many turns of vLLM's scheduler would have.

In a step in which an undisturbed batch only decodes, vLLM's scheduler gives every running request one token,
in the order of `running`. Of all its calls only `KVCacheManager.allocate_slots` changes more than counters,
and for one token that only where a block begins (`allocate_new_blocks` takes one from the pool) or becomes
full (`cache_blocks` offers it to the prefix cache). So those two are called, in the same order, and counters
are brought up to date when somebody looks. A queue's head that found no room finds none in such a step:
blocks are taken, none is given back.
"""

from __future__ import annotations

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from llumnix.engine.simulated.executor import TOKEN
from llumnix.profiles import HardwareProfile

MOST_STEPS = 64
"""Of one run: something comes in between, mostly."""


class DecodeAhead:
    """One run of decode steps of one scheduler, whose batch is as it is now and stays so until it is settled.

    Invariant: requests are behind by the same number of tokens and computed tokens, until `settle`.
    """

    def __init__(self, scheduler: Scheduler, profile: HardwareProfile) -> None:
        """`scheduler` must be `undisturbed`."""
        self._scheduler = scheduler
        self._kv = scheduler.kv_cache_manager
        self._profile = profile
        self._running: list[Request] = list(scheduler.running)
        self._done = 0
        self._behind_since = [0] * len(self._running)
        """By place in the batch: how many of the steps the request's own counters include."""
        self._due: list[list[tuple[int, bool]]] = [[] for _ in range(scheduler.block_size)]
        """By step (modulo the block size): places of requests with a block that begins (True) or is full."""
        self._beginning = [0] * scheduler.block_size
        """By step (modulo the block size): how many blocks begin."""
        block_size = scheduler.block_size
        for place, request in enumerate(self._running):
            first = -request.num_computed_tokens % block_size
            self._due[first].append((place, True))
            if self._kv.enable_caching:
                self._due[first - 1].append((place, False))
            self._beginning[first] += 1

    def times(self, now: float, factor: float = 1.0, at_most: int = MOST_STEPS) -> list[float]:
        """When each step ends that can be run so: up to the last before a request finishes or blocks run out.

        Each takes `factor` times what the profile says.
        """
        batch = len(self._running)
        num_tokens = sum(request.num_computed_tokens + 1 for request in self._running)
        step_ms = self._profile.decode_step_ms
        times: list[float] = []
        for step in range(min(self._limit(), at_most)):
            now += step_ms(batch, num_tokens + step * batch) * factor / 1e3
            times.append(now)
        return times

    def _limit(self) -> int:
        """Steps until one in which a request makes its last token, or a block begins and none is free."""
        max_model_len = self._scheduler.max_model_len
        limit = min(
            min(r.max_tokens - r.num_output_tokens, max_model_len - r.num_tokens) for r in self._running
        )
        limit -= 1
        num_free = self._kv.block_pool.get_num_free_blocks()
        block_size = len(self._beginning)
        full_rounds, num_free = divmod(num_free, len(self._running))
        steps = full_rounds * block_size
        for num_beginning in self._beginning:
            if num_beginning > num_free:
                return min(limit, steps)
            num_free -= num_beginning
            steps += 1
        return min(limit, steps)

    def run_to(self, num_steps: int) -> None:
        """Have run this many steps in all; not more than `times` has."""
        running, due, block_size = self._running, self._due, len(self._due)
        allocate = self._kv.coordinator.allocate_new_blocks
        for step in range(self._done, num_steps):
            for place, begins in due[step % block_size]:
                request = running[place]
                self._catch_up(place, request, step)
                num_tokens = request.num_computed_tokens + 1
                if begins:
                    allocate(request.request_id, num_tokens, num_tokens)
                else:
                    self._kv.cache_blocks(request, num_tokens)
        self._scheduler.current_step += num_steps - self._done
        self._done = num_steps

    def next_beginning(self, num_steps: int) -> int:
        """The first number of steps above this after which another block is held."""
        block_size = len(self._beginning)
        return (
            next(s for s in range(num_steps, num_steps + block_size) if self._beginning[s % block_size]) + 1
        )

    def settle(self) -> None:
        """Bring every request up to date: the scheduler is as after `run_to`'s number of its own steps."""
        for place, request in enumerate(self._running):
            self._catch_up(place, request, self._done)

    def _catch_up(self, place: int, request: Request, num_steps: int) -> None:
        num_behind = num_steps - self._behind_since[place]
        if num_behind:
            self._behind_since[place] = num_steps
            request.num_computed_tokens += num_behind
            request.append_output_token_ids([TOKEN] * num_behind)


def undisturbed(scheduler: Scheduler, only_decoded: bool) -> bool:
    """Whether the next step only decodes; `only_decoded`: as the last one did, and nothing came since."""
    if not scheduler.running or scheduler.kv_holding_waiting:
        return False
    # A head of line that was not tried since blocks came back may find room.
    if scheduler.waiting and (not only_decoded or scheduler.finished_req_ids):
        return False
    current_step = scheduler.current_step
    return all(
        request.num_tokens - request.num_computed_tokens == 1
        and request.next_decode_eligible_step <= current_step
        for request in scheduler.running
    )
