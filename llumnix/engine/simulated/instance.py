"""An instance on the virtual clock: vLLM's engine, with the llumlet's hooks between its steps."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore

from llumnix.core.handover.settings import HandoverSettings
from llumnix.core.load import InstanceReport
from llumnix.engine.llumlet import Llumlet
from llumnix.engine.migration.port import MigrationPort
from llumnix.engine.scheduler_view import MovesUnderWay, SchedulerView
from llumnix.engine.simulated.clock import VirtualClock
from llumnix.engine.simulated.decode_ahead import MOST_STEPS, DecodeAhead, undisturbed
from llumnix.engine.simulated.executor import VirtualTimeExecutor
from llumnix.engine.simulated.network import Link

REPORT_INTERVAL_S = 0.020
"""As llumnix.engine.instance: a report after each step, but at most so often."""
IDLE_REPORT_S = 0.5
_NOTHING_RUN_S = 0.001
_AVERAGE_WEIGHT = 0.2
_NO_MOVES = MovesUnderWay()


@dataclass(frozen=True, slots=True)
class StepEnd:
    """What a step that was run by itself has brought; steps run ahead bring nothing but further tokens."""

    uid: int
    with_token: list[str] = field(default_factory=list)
    """Engine-side ids of the requests that made a token."""
    finished: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)


class VirtualInstance:
    """Goes from step to step as InstanceCore does: outputs, llumlet, report, what has arrived, next step.

    A step's whole effect is computed when it begins, and nobody looks at it before its end: what arrives in
    between waits, as in an engine loop, and reports are those of the ends of steps. While nothing arrives and
    the batch only decodes, steps are not even begun until somebody wants to see a report of them.
    """

    def __init__(
        self,
        uid: int,
        engine: EngineCore,
        clock: VirtualClock,
        link: Link,
        handover: HandoverSettings,
        *,
        on_step: Callable[[StepEnd], None],
        send: Callable[[object], None],
    ) -> None:
        """`send` takes what a llumlet puts behind the outputs so far: letters, notices, news."""
        assert isinstance(engine.scheduler, Scheduler)
        assert isinstance(engine.model_executor, VirtualTimeExecutor)
        self.uid = uid
        self.num_steps = 0
        self._engine = engine
        self._scheduler = engine.scheduler
        self._pool = engine.scheduler.kv_cache_manager.block_pool
        self._executor = engine.model_executor
        self._clock = clock
        self._link = link
        self._on_step = on_step
        self._inbox: deque[Callable[[], object]] = deque()
        self._wake_at: float | None = None
        """When the loop comes round next; None while it sleeps."""
        self._step_end: StepEnd | None = None
        """Of the step under way, if it is run by itself."""
        self._only_decoded = False
        self._ahead: DecodeAhead | None = None
        self._ahead_began = 0.0
        self._ahead_times: list[float] = []
        """When each of the steps planned ahead ends."""
        self._num_run = 0
        """How many of them have been run."""
        self._reports: deque[tuple[float, InstanceReport]] = deque()
        self._news_at = 0.0
        self._num_reports = 0
        self._num_free_reported = 0
        self._next_report_at = 0.0
        self._step_ms = 0.0
        self._tokens_per_s = 0.0
        self._tokens_since = 0
        self._rate_since = 0.0
        self._taken: dict[int, int] = {}
        self.port = MigrationPort(engine)
        self.view = SchedulerView(self._scheduler, self.port.source.frozen_in_no_queue)
        self.llumlet = Llumlet(
            uid,
            self.port,
            link,
            handover,
            on_engine_thread=self.post,
            send=send,
            abort=engine.abort_requests,
            set_priority=self.view.set_priority,
            load=self._load,
            clock=clock,
        )
        self._publish(clock.now)

    # ---- what the driver does ---------------------------------------------------------------------------

    def post(self, call: Callable[[], object]) -> None:
        """Have the engine loop make a call once the step that runs now has ended."""
        self._inbox.append(call)
        if self._ahead is not None:
            self._wake(self._ahead_times[bisect_left(self._ahead_times, self._clock.now)])
        elif self._step_end is None:
            self._wake(self._clock.now)

    def submit(self, request: EngineCoreRequest) -> None:
        """Queue a request; to be posted."""
        self._taken[request.client_index] = self._taken.get(request.client_index, 0) + 1
        self._engine.add_request(*self._engine.preprocess_add_request(request))

    def report(self, until: float) -> InstanceReport:
        """The newest report that was sent by then; `until` may not go back from call to call."""
        if until >= self._news_at:
            if self._ahead is not None:
                self._report_ahead(bisect_right(self._ahead_times, until))
            elif self._step_end is None and until >= self._reports[-1][0] + IDLE_REPORT_S:
                self._publish(until)
            while len(self._reports) > 1 and self._reports[1][0] <= until:
                self._reports.popleft()
            self._news_at = self._next_news_at()
        return self._reports[0][1]

    def _next_news_at(self) -> float:
        """Before this time no other report can come to be seen, if nothing comes in."""
        if len(self._reports) > 1:
            return self._reports[1][0]
        if self._ahead is not None:
            num_steps = self._ahead.next_beginning(self._num_run)
            return self._ahead_times[num_steps - 1] if num_steps <= len(self._ahead_times) else math.inf
        return self._reports[0][0] + IDLE_REPORT_S if self._step_end is None else math.inf

    @property
    def is_empty(self) -> bool:
        return not self._scheduler.requests and not self.llumlet.is_busy

    def check_integrity(self) -> list[str]:
        """What is wrong with the books of requests, blocks and migrations; empty if all is well."""
        return self.llumlet.check_integrity()

    # ---- the engine loop --------------------------------------------------------------------------------

    def _wake(self, when: float) -> None:
        if self._wake_at != when:
            self._wake_at = when
            self._clock.at(when, lambda: self._turn(when))

    def _turn(self, now: float) -> None:
        """One turn of the loop, at the end of a step or because something came while it was idle."""
        if self._wake_at != now:
            return  # a call for a time that has been changed since
        self._wake_at = None
        if self._ahead is not None:
            self._end_ahead(self._ahead, now)
        elif self._step_end is not None:
            self._end_step(self._step_end)
        if self.llumlet.is_busy:
            self.llumlet.after_step(now)
            self._only_decoded = False
        if now >= self._next_report_at:
            self._publish(now)
        self._take_in(now)
        self._begin_step(now)
        self._news_at = 0.0

    def _take_in(self, now: float) -> None:
        while self._inbox:
            self._inbox.popleft()()
            self._only_decoded = False
            if self.llumlet.is_busy and not self._scheduler.has_requests():
                self.llumlet.after_step(now)

    def _begin_step(self, now: float) -> None:
        if not self._scheduler.has_requests():
            self._publish(now)
            if self.llumlet.is_busy:
                self._wake(now + IDLE_REPORT_S)
            return
        self.llumlet.before_step()
        if not self._begin_ahead(now):
            self._step(now)

    # ---- one step ---------------------------------------------------------------------------------------

    def _step(self, now: float) -> None:
        outputs, executed = self._engine.step()
        end = self._step_end = StepEnd(self.uid)
        for of_client in outputs.values():
            for output in of_client.outputs:
                end.with_token.append(output.request_id)
                if output.finish_reason is not None:
                    end.finished.append(output.request_id)
        if not executed:
            # As vLLM's loop: nothing can run, or it has only told the workers of requests that are gone.
            self._wake(now + _NOTHING_RUN_S if self._scheduler.has_unfinished_requests() else now)
            return
        end.preempted.extend(sorted(self._executor.preempted))
        self._only_decoded = self._executor.only_decoded
        step_ms = self._executor.step_ms * self._link.step_factor()
        self._count_step(step_ms, len(end.with_token))
        self._wake(now + step_ms / 1e3)

    def _end_step(self, end: StepEnd) -> None:
        self._step_end = None
        self._on_step(end)

    def _count_step(self, step_ms: float, num_tokens: int) -> None:
        self.num_steps += 1
        self._step_ms += _AVERAGE_WEIGHT * (step_ms - self._step_ms)
        self._tokens_since += num_tokens

    # ---- steps ahead ------------------------------------------------------------------------------------

    def _begin_ahead(self, now: float) -> bool:
        """Plan as many decode steps as nothing but a message can disturb; False if there is none."""
        if not undisturbed(self._scheduler, self._only_decoded):
            return False
        ahead = DecodeAhead(self._scheduler, self._executor.profile)
        # What migrates is looked at after each step.
        at_most = 1 if self.llumlet.is_busy else MOST_STEPS
        self._ahead_times = ahead.times(now, self._link.step_factor(), at_most)
        if not self._ahead_times:
            return False
        self._ahead, self._ahead_began, self._num_run = ahead, now, 0
        self._wake(self._ahead_times[-1])
        return True

    def _run_ahead(self, num_steps: int) -> None:
        assert self._ahead is not None
        self._ahead.run_to(num_steps)
        before = self._ahead_times[self._num_run - 1] if self._num_run else self._ahead_began
        for time in self._ahead_times[self._num_run : num_steps]:
            self._count_step((time - before) * 1e3, len(self._scheduler.running))
            before = time
        self._num_run = num_steps

    def _report_ahead(self, num_steps: int) -> None:
        """Publish the newest of the reports that are due within the first steps."""
        due = bisect_left(self._ahead_times, self._next_report_at) + 1
        if due > num_steps:
            return
        while (
            later := bisect_left(self._ahead_times, self._ahead_times[due - 1] + REPORT_INTERVAL_S)
        ) < num_steps:
            due = later + 1
        self._run_ahead(due)
        if self._pool.get_num_free_blocks() != self._num_free_reported:
            self._publish(self._ahead_times[due - 1])
        else:  # it would say nothing new
            self._next_report_at = self._ahead_times[due - 1] + REPORT_INTERVAL_S

    def _end_ahead(self, ahead: DecodeAhead, now: float) -> None:
        num_steps = bisect_right(self._ahead_times, now)
        self._report_ahead(num_steps - 1)
        self._run_ahead(num_steps)
        ahead.settle()
        self._ahead = None
        self._only_decoded = True

    # ---- reports ----------------------------------------------------------------------------------------

    def _publish(self, now: float) -> None:
        elapsed = now - self._rate_since
        if elapsed >= 0.5:
            self._tokens_per_s = self._tokens_since / elapsed
            self._tokens_since, self._rate_since = 0, now
        self._num_reports += 1
        self._reports.append((now, self._load(self._num_reports)))
        self._num_free_reported = self._pool.get_num_free_blocks()
        self._next_report_at = now + REPORT_INTERVAL_S

    def _load(self, seq: int = 0) -> InstanceReport:
        moves = self.llumlet.moves_under_way() if self.llumlet.is_busy else _NO_MOVES
        return self.view.load(self.uid, self._step_ms, self._tokens_per_s, self._taken, moves, seq)
