"""The instances of a simulated cluster, and what they send each other."""

from __future__ import annotations

from collections.abc import Callable

from llumnix.core.events import MoveRequests
from llumnix.core.load import InstanceReport
from llumnix.engine.peers import Letter
from llumnix.engine.simulated.build import EngineBuilder, request_of
from llumnix.engine.simulated.clock import VirtualClock
from llumnix.engine.simulated.instance import StepEnd, VirtualInstance
from llumnix.engine.simulated.network import Link, Network
from llumnix.profiles import find_profile
from llumnix.sim.errors import SimulationError
from llumnix.sim.ledger import Ledger
from llumnix.sim.records import SimRequest, SimSetup
from llumnix.wire import MigrationNews, MoveAway, NoticeFrom, PeerAddress

_ADDRESS = PeerAddress("virtual", Link.address)
"""Of every instance: letters go by uid."""


class Fleet:
    """Keeps the books of what instances do; every message between two processes takes the setup's latency."""

    def __init__(self, setup: SimSetup, clock: VirtualClock, ledger: Ledger) -> None:
        profile = find_profile(setup.profile)
        self.migrations_committed = self.migrations_aborted = 0
        self._setup = setup
        self._clock = clock
        self._ledger = ledger
        self._builder = EngineBuilder(profile, setup.profile, prefix_caching=setup.prefix_caching)
        self._network = Network(clock, profile)
        self._instances: dict[int, VirtualInstance] = {}
        self._num_steps = 0
        """Of instances that are gone."""

    @property
    def num_steps(self) -> int:
        return self._num_steps + sum(instance.num_steps for instance in self._instances.values())

    def start(self, uid: int) -> None:
        """Have one more instance, at once."""
        self._instances[uid] = VirtualInstance(
            uid,
            self._builder.build(),
            self._clock,
            Link(self._network),
            self._setup.handover,
            on_step=self._step_ended,
            send=lambda message: self._deliver(uid, message),
        )

    def stop(self, uid: int) -> None:
        """End an instance; raises SimulationError if requests would be lost with it."""
        instance = self._instances[uid]
        if not instance.is_empty:
            raise SimulationError(f"instance #{uid} was stopped with requests on it")
        self.check_integrity()
        self._num_steps += instance.num_steps
        del self._instances[uid]

    def later(self, call: Callable[[], None]) -> None:
        """Have a call made at the other end of a connection."""
        self._clock.at(self._clock.now + self._setup.latency_s, call)

    def reports(self) -> list[InstanceReport]:
        """The newest report of every instance that has reached the other processes."""
        until = self._clock.now - self._setup.latency_s
        return [instance.report(until) for instance in self._instances.values()]

    def submit(self, request: SimRequest, api_server: int, uid: int) -> None:
        """Send a request to an instance."""
        sent = request_of(
            self._ledger.engine_id(request),
            request.prompt_token_ids(),
            request.output_tokens,
            request.arrival_s,
            priority=request.priority,
            api_server=api_server,
        )
        instance = self._instances[uid]
        self._ledger.placed(request, uid)
        self.later(lambda: instance.post(lambda: instance.submit(sent)))

    def move(self, order: MoveRequests) -> None:
        """Send the scheduler's order to the source's llumlet."""
        source = self._instances.get(order.source)
        if source is None or order.target not in self._instances:
            return
        sent = MoveAway(order.target, _ADDRESS, order.reason, order.for_s, order.goal)
        self.later(lambda: source.post(lambda: source.llumlet.move_away(sent)))

    def check_integrity(self) -> None:
        """Raises SimulationError where the books of an instance are wrong."""
        for uid, instance in self._instances.items():
            if problems := instance.check_integrity():
                raise SimulationError(f"the books of instance #{uid} are wrong: {'; '.join(problems[:3])}")

    def _step_ended(self, end: StepEnd) -> None:
        self._ledger.step_ended(self._clock.now, end.with_token, end.finished, end.preempted)

    def _deliver(self, uid: int, message: object) -> None:
        """What a llumlet sends: letters to others, notices to API servers, news to the manager."""
        match message:
            case Letter(peer, _, content):
                letter = Letter(uid, _ADDRESS, content)
                self.later(lambda: self._hear(peer, letter))
            case (_, NoticeFrom(adopted=adopted)) if adopted is not None:
                self._ledger.adopted(adopted.request_id, uid)
            case MigrationNews(state="committed"):
                self.migrations_committed += 1
            case MigrationNews(state="aborted"):
                self.migrations_aborted += 1

    def _hear(self, uid: int, letter: Letter) -> None:
        peer = self._instances.get(uid)
        if peer is not None:
            peer.post(lambda: peer.llumlet.hear(letter))
