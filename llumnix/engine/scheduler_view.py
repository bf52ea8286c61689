"""What llumnix reads from and changes in vLLM's scheduler, on the engine thread between two steps.

Every private name of vLLM's scheduler and block pool that llumnix uses stands in this module
(vllm.v1.core.sched.scheduler.Scheduler, vllm.v1.core.block_pool.BlockPool).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from llumnix.core.load import ClassLoad, InstanceReport
from llumnix.wire import RequestRow


@dataclass(frozen=True, slots=True)
class MovesUnderWay:
    """Migrations that an instance takes part in, as its report has them (InstanceReport)."""

    leaving: int = 0
    leaving_blocks: int = 0
    arriving: int = 0
    copy_blocks_per_s: float = 0.0
    refusals: Mapping[str, int] = field(default_factory=dict)


class SchedulerView:
    """Reads one scheduler; every method must run on the engine thread."""

    def __init__(self, scheduler: Scheduler, in_no_queue: Callable[[], Iterable[Request]] = tuple) -> None:
        """`in_no_queue`: waiting requests that a migration, or a grammar, keeps out of the queues."""
        self._scheduler = scheduler
        self._in_no_queue = in_no_queue
        self._pool = scheduler.kv_cache_manager.block_pool
        managers = scheduler.kv_cache_manager.coordinator.single_type_managers
        self._tables = [manager.req_to_blocks for manager in managers]
        self.block_size: int = scheduler.block_size
        # vLLM keeps one block aside as the null block.
        self.total_blocks: int = self._pool.num_gpu_blocks - 1

    def load(
        self,
        uid: int,
        step_ms: float,
        tokens_per_s: float,
        taken: dict[int, int],
        moves: MovesUnderWay,
        seq: int = 0,
    ) -> InstanceReport:
        """The instance's load now; where `seq` is 0, the outbox numbers it when it is sent."""
        scheduler = self._scheduler
        classes: dict[int, list[int]] = {}
        queued_blocks = num_waiting = backlog_blocks = 0
        for request in scheduler.running:
            counts = classes.setdefault(request.priority, [0, 0, 0])
            counts[0] += 1
            held = self._held_blocks(request)
            counts[2] += held
            if request.num_computed_tokens < request.num_tokens - 1:
                backlog_blocks += max(0, self._demand_blocks(request) - held)
        for request in _unsorted(scheduler.waiting):  # holds no blocks; the loop counts in deep queues
            counts = classes.setdefault(request.priority, [0, 0, 0])
            counts[1] += 1
            queued_blocks += self._demand_blocks(request)
            num_waiting += 1
        for request in chain(_unsorted(scheduler.kv_holding_waiting), self._in_no_queue()):
            counts = classes.setdefault(request.priority, [0, 0, 0])
            counts[1] += 1
            held = self._held_blocks(request)
            counts[2] += held
            queued_blocks += max(0, self._demand_blocks(request) - held)
            num_waiting += 1
        head = self._head_of_line()
        return InstanceReport(
            uid=uid,
            seq=seq,
            block_size=self.block_size,
            total_blocks=self.total_blocks,
            used_blocks=self.total_blocks - self._pool.get_num_free_blocks(),
            max_running=scheduler.max_num_running_reqs,
            running=len(scheduler.running),
            waiting=num_waiting,
            queued_blocks=queued_blocks,
            head_blocks=0 if head is None else max(0, self._demand_blocks(head) - self._held_blocks(head)),
            classes={priority: ClassLoad(*counts) for priority, counts in classes.items()},
            step_ms=step_ms,
            tokens_per_s=tokens_per_s,
            taken=dict(taken),
            paused=scheduler.pause_state != PauseState.UNPAUSED,
            backlog_blocks=backlog_blocks,
            leaving=moves.leaving,
            leaving_blocks=moves.leaving_blocks,
            arriving=moves.arriving,
            copy_blocks_per_s=moves.copy_blocks_per_s,
            refusals=moves.refusals,
        )

    def rows(self) -> tuple[RequestRow, ...]:
        """Every live request, running ones first."""
        running = ((request, True) for request in self._scheduler.running)
        waiting = ((request, False) for request in self._waiting())
        return tuple(
            RequestRow(
                request_id=request.request_id,
                priority=request.priority,
                running=is_running,
                prompt_tokens=request.num_prompt_tokens,
                output_tokens=request.num_output_tokens,
                kv_blocks=self._held_blocks(request),
                arrival_s=request.arrival_time,
                api_server=request.client_index,
                preemptions=request.num_preemptions,
            )
            for request, is_running in chain(running, waiting)
        )

    def set_priority(self, request_id: str, priority: int) -> bool:
        """Give a request another priority and its new place in the queue; False if it is gone."""
        request = self._scheduler.requests.get(request_id)
        if request is None or request.is_finished():
            return False
        for queue in (self._scheduler.waiting, self._scheduler.kv_holding_waiting):
            if any(queued is request for queued in queue):
                queue.remove_request(request)
                request.priority = priority
                queue.add_request(request)
                return True
        request.priority = priority
        return True

    def requests_of(self, api_server: int) -> list[str]:
        """Ids of the live requests that one API server sent."""
        return [r.request_id for r in self._scheduler.requests.values() if r.client_index == api_server]

    def _waiting(self) -> Iterator[Request]:
        scheduler = self._scheduler
        queues = (_unsorted(scheduler.waiting), _unsorted(scheduler.kv_holding_waiting))
        return chain(*queues, self._in_no_queue())

    def _head_of_line(self) -> Request | None:
        for queue in (self._scheduler.kv_holding_waiting, self._scheduler.waiting):
            if queue:
                return queue.peek_request()
        return None

    def _demand_blocks(self, request: Request) -> int:
        return -(-request.num_tokens // self.block_size)

    def _held_blocks(self, request: Request) -> int:
        num_held = 0
        for table in self._tables:
            num_held += len(table.get(request.request_id, ()))
        return num_held


def _unsorted(queue: RequestQueue) -> Iterable[Request]:
    """A queue's requests; its own iteration would sort a copy of its heap."""
    requests: Iterable[Request] = getattr(queue, "_heap", queue)
    return requests
