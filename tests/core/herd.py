"""Several API servers dispatching on late reports, in virtual time: how evenly the instances are loaded."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from llumnix.core.choice import Choice
from llumnix.core.dispatch import Dispatcher
from llumnix.core.events import DispatchEntry
from llumnix.core.load import ClassLoad, InstanceReport

BLOCK_SIZE = 16
PROMPT_TOKENS = 320
BLOCKS_PER_REQUEST = PROMPT_TOKENS // BLOCK_SIZE


@dataclass(slots=True)
class Instance:
    """Starts every request at once; counts what each server sent."""

    uid: int
    running: int = 0
    seq: int = 0
    taken: Counter[int] = field(default_factory=Counter)

    def report(self) -> InstanceReport:
        """What it would say of itself now."""
        self.seq += 1
        return InstanceReport(
            uid=self.uid,
            seq=self.seq,
            block_size=BLOCK_SIZE,
            total_blocks=4000,
            used_blocks=self.running * BLOCKS_PER_REQUEST,
            max_running=256,
            running=self.running,
            waiting=0,
            classes={0: ClassLoad(self.running, 0, self.running * BLOCKS_PER_REQUEST)},
            taken=dict(self.taken),
        )


@dataclass(frozen=True, slots=True)
class Load:
    num_instances: int = 8
    num_servers: int = 4
    report_every_s: float = 0.05
    report_late_s: float = 0.02
    rate_per_s: float = 100.0
    service_s: float = 2.0
    duration_s: float = 12.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Spread:
    """How even the load was.

    `sent`: requests by instance; `peak`: most requests on one instance at once, after the first `service_s`;
    `gap`: mean over arrivals of the busiest instance's requests minus the idlest one's.
    """

    sent: tuple[int, ...]
    peak: int
    gap: float

    @property
    def ratio(self) -> float:
        return max(self.sent) / max(min(self.sent), 1)


def simulate(load: Load, servers: list[Dispatcher], *, count_sent: bool = True) -> Spread:
    """Run the load; `count_sent=False` leaves the servers blind to what they sent since the last report."""
    rng = random.Random(load.seed)
    instances = [Instance(uid) for uid in range(load.num_instances)]
    table = [DispatchEntry(i.uid, f"i{i.uid}", True) for i in instances]
    sent: Counter[int] = Counter()
    gaps: list[int] = []
    peak = 0
    agenda: list[tuple[float, int, Callable[[float], None]]] = []
    order = iter(range(10**9))

    def at(when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(agenda, (when, next(order), what))

    def observe(server: Dispatcher, latest: InstanceReport) -> Callable[[float], None]:
        return lambda _: server.observe(latest)

    def report(instance: Instance) -> Callable[[float], None]:
        def run(now: float) -> None:
            latest = instance.report()
            for server in servers:
                at(now + load.report_late_s, observe(server, latest))
            at(now + load.report_every_s, run)

        return run

    def arrive(now: float) -> None:
        nonlocal peak
        index = rng.randrange(load.num_servers)
        choice = servers[index].choose(PROMPT_TOKENS, 0)
        assert isinstance(choice, Choice)
        if count_sent:
            servers[index].sent(choice.uid, PROMPT_TOKENS, 0)
        instance = instances[choice.uid]
        instance.running += 1
        instance.taken[index] += 1
        sent[choice.uid] += 1
        at(now + load.service_s, lambda _: finish(instance))
        at(now + rng.expovariate(load.rate_per_s), arrive)
        if now > load.service_s:
            peak = max(peak, instance.running)
            loads = [i.running for i in instances]
            gaps.append(max(loads) - min(loads))

    def finish(instance: Instance) -> None:
        instance.running -= 1

    for server in servers:
        server.set_table(table)
    for instance in instances:
        at(load.report_every_s * instance.uid / load.num_instances, report(instance))
    at(0.0, arrive)
    while agenda[0][0] < load.duration_s:
        now, _, what = heapq.heappop(agenda)
        what(now)
    return Spread(tuple(sent[i.uid] for i in instances), peak, sum(gaps) / len(gaps))
