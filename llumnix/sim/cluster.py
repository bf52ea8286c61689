"""A whole cluster on the virtual clock: llumnix.core decides, vLLM's engines run without a model."""

from __future__ import annotations

import gc
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

from llumnix.core import events as ev
from llumnix.core.load import InstanceReport
from llumnix.core.policies import POLICIES, make_dispatcher
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import LlumnixPlusSettings, LlumnixSettings, ScalingSettings, SchedulerSettings
from llumnix.engine.main import prepare_environment
from llumnix.errors import ConfigError
from llumnix.profiles import find_profile
from llumnix.sim.api_server import LOOK_INTERVAL_S, SimApiServer
from llumnix.sim.errors import SimulationError
from llumnix.sim.ledger import Ledger
from llumnix.sim.records import RunResult, SimRequest, SimSetup

_QUIET_TICK_S = 0.25
"""As the daemon ticks where nothing is rescheduled."""


def simulate(setup: SimSetup, workload: Sequence[SimRequest]) -> RunResult:
    """Run a workload to its end; the same setup and workload give the same result but for `cpu_s`.

    Raises ValueError for a workload or a setup that cannot be run.
    """
    started = time.process_time()
    _check(setup, workload)
    prepare_environment(num_threads=1)
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    simulation = Simulation(setup, workload)
    gc.disable()  # a third of the time otherwise; nearly everything here ends by its reference count
    try:
        result = simulation.run()
    finally:
        gc.enable()
    return replace(result, cpu_s=time.process_time() - started)


def scheduler_settings(setup: SimSetup) -> SchedulerSettings:
    """The settings that llumnixd would have for the setup."""
    scaling = ScalingSettings()
    if (wanted := setup.scaling) is not None:
        scaling = ScalingSettings(
            enabled=True,
            min_instances=wanted.min_instances,
            max_instances=wanted.max_instances,
            scale_up_freeness=wanted.scale_up_freeness,
            scale_down_freeness=wanted.scale_down_freeness,
            hold_s=wanted.hold_s,
            interval_s=wanted.interval_s,
        )
    return SchedulerSettings(
        policy=setup.policy,
        rescheduling=setup.rescheduling,
        llumnix=LlumnixSettings(setup.migration_threshold),
        llumnix_plus=replace(LlumnixPlusSettings(), **setup.plus),
        scaling=scaling,
        headroom=setup.headroom,
        # Nothing hangs on a virtual clock.
        heartbeat_timeout_s=math.inf,
    )


class Simulation:
    """One run: carries out what core.Scheduler decides, as the cluster manager does with real processes."""

    def __init__(self, setup: SimSetup, workload: Sequence[SimRequest]) -> None:
        # Imports vLLM, which reads the environment then.
        from llumnix.engine.simulated.clock import VirtualClock
        from llumnix.sim.fleet import Fleet

        self._setup = setup
        self._workload = workload
        self._settings = scheduler_settings(setup)
        self._clock = VirtualClock()
        self._ledger = Ledger(workload)
        self._fleet = Fleet(setup, self._clock, self._ledger)
        self._scheduler = Scheduler(self._settings)
        self._draw = random.Random(setup.seed)
        self._servers = [self._api_server(index) for index in range(setup.api_servers)]
        self._reported: dict[int, InstanceReport] = {}
        """By uid: what the scheduler was told last."""
        self._uids: set[int] = set()
        """Of instances that run or start."""
        self._counts: list[tuple[float, int]] = []

    def run(self) -> RunResult:
        """The whole run."""
        self._handle(ev.AddInstances(self._setup.instances))
        for request in sorted(self._workload, key=lambda request: (request.arrival_s, request.id)):
            self._clock.at(request.arrival_s, partial(self._arrive, request))
        self._tick()
        self._clock.run_until(lambda: self._ledger.is_over)
        if not self._ledger.is_over:
            raise SimulationError(f"requests {self._ledger.unfinished()[:5]} never finished")
        self._fleet.check_integrity()
        return self._result()

    # ---- API servers ------------------------------------------------------------------------------------

    def _api_server(self, index: int) -> SimApiServer:
        return SimApiServer(
            index,
            make_dispatcher(self._settings, api_servers=self._setup.api_servers, server_index=index),
            self._settings.llumnix_plus.overtake_s,
            reports=self._fleet.reports,
            send=self._fleet.submit,
            tell_manager=lambda held: self._fleet.later(lambda: self._handle(held)),
        )

    def _arrive(self, request: SimRequest) -> None:
        server = self._draw.choice(self._servers)
        held_before = server.holds
        server.arrive(request, self._clock.now)
        if server.holds and not held_before:
            self._look_again(server)

    def _look_again(self, server: SimApiServer) -> None:
        def look() -> None:
            server.look(self._clock.now)
            if server.holds:
                self._look_again(server)

        self._clock.at(self._clock.now + LOOK_INTERVAL_S, look)

    # ---- the manager ------------------------------------------------------------------------------------

    def _tick(self) -> None:
        for report in self._fleet.reports():
            if self._reported.get(report.uid) is not report:
                self._reported[report.uid] = report
                self._handle(ev.Reported(report))
        self._handle(ev.Tick())
        moves = self._settings.rescheduling and POLICIES[self._settings.policy].reschedule is not None
        self._clock.at(self._clock.now + (self._settings.interval_s if moves else _QUIET_TICK_S), self._tick)

    def _handle(self, event: ev.Event) -> None:
        for action in self._scheduler.handle(event, self._clock.now):
            self._do(action)

    def _do(self, action: ev.Action) -> None:
        match action:
            case ev.StartInstance(_, uid):
                self._start(uid)
            case ev.StopInstance(_, uid) | ev.KillInstance(_, uid):
                self._stop(uid)
            case ev.MoveRequests():
                self._fleet.move(action)
            case ev.PublishTable():
                for server in self._servers:
                    self._publish(action, server)

    def _publish(self, table: ev.PublishTable, server: SimApiServer) -> None:
        self._fleet.later(lambda: server.set_table(table, self._clock.now))

    def _start(self, uid: int) -> None:
        # Those of the beginning are there at once.
        later = self._setup.scaling is not None and self._clock.now > 0
        start_s = self._setup.scaling.start_s if later and self._setup.scaling else 0.0
        self._uids.add(uid)
        self._count_instances()
        self._clock.at(self._clock.now, lambda: self._handle(ev.InstancePlaced(uid, "virtual", 0)))
        self._clock.at(self._clock.now + start_s, lambda: self._started(uid))

    def _started(self, uid: int) -> None:
        if uid in self._uids:
            self._fleet.start(uid)
            self._handle(ev.InstanceReady(uid))

    def _stop(self, uid: int) -> None:
        self._fleet.stop(uid)
        self._uids.remove(uid)
        self._count_instances()
        self._clock.at(self._clock.now, lambda: self._handle(ev.InstanceDied(uid, "stopped")))

    # ---- the result -------------------------------------------------------------------------------------

    def _count_instances(self) -> None:
        self._counts.append((self._clock.now, len(self._uids)))

    def _result(self) -> RunResult:
        requests = self._ledger.results()
        begin = min(request.arrival_s for request in requests)
        end = self._ledger.last_finish_s
        return RunResult(
            setup=self._setup,
            requests=requests,
            migrations_committed=self._fleet.migrations_committed,
            migrations_aborted=self._fleet.migrations_aborted,
            preemptions=self._ledger.preemptions,
            instance_counts=_last_at_each_time(self._counts),
            average_instances=_average(self._counts, begin, end),
            duration_s=end - begin,
            engine_steps=self._fleet.num_steps,
            cpu_s=0.0,
        )


def _last_at_each_time(counts: Sequence[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    return tuple(dict(counts).items())


def _average(counts: Sequence[tuple[float, int]], begin: float, end: float) -> float:
    """Mean of a step function, given by its changes, over a span of time."""
    total = 0.0
    for (since, count), (until, _) in pairwise([*counts, (end, 0)]):
        total += count * max(0.0, min(until, end) - max(since, begin))
    return total / (end - begin) if end > begin else float(counts[-1][1])


def _check(setup: SimSetup, workload: Sequence[SimRequest]) -> None:
    capacity = find_profile(setup.profile)
    most_tokens = capacity.num_blocks * capacity.block_size
    if not workload:
        raise ConfigError("the workload has no requests; expected one or more")
    if setup.policy not in POLICIES:
        raise ConfigError(f"policy = {setup.policy!r}, expected one of {', '.join(POLICIES)}")
    if setup.instances < 1 or setup.api_servers < 1:
        raise ConfigError(
            f"instances = {setup.instances}, api_servers = {setup.api_servers}; expected 1 or more of each"
        )
    for request in workload:
        if request.prompt_tokens < 1 or request.output_tokens < 1 or request.arrival_s < 0:
            raise ConfigError(
                f"request {request.id}: expected tokens of 1 or more and an arrival of 0 s or later"
            )
        if request.prompt_tokens + request.output_tokens > most_tokens:
            raise ConfigError(
                f"request {request.id} has {request.prompt_tokens} + {request.output_tokens} tokens; "
                f"an instance of {setup.profile} holds {most_tokens} (--longest leaves some out)"
            )
    if len({request.id for request in workload}) != len(workload):
        raise ConfigError("two requests of the workload have the same id")
