"""Faults at random steps of migrations between vLLM schedulers on a virtual clock; the books after each.

python -m tests.benchmarks.bench_faults [--requests 1000] [--seed 1]
Every instance is vLLM's own scheduler and block manager with our llumlet; only the model and the wires are
simulated. Bar: check_integrity finds nothing wrong at the fault and once the migration is over, no migration
hangs, and at the end every block is free.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm.v1.engine.core import EngineCore

from llumnix.core.handover.settings import HandoverSettings
from llumnix.engine.main import prepare_environment
from llumnix.engine.peers import Letter
from llumnix.engine.simulated.build import EngineBuilder, request_of
from llumnix.engine.simulated.clock import VirtualClock
from llumnix.engine.simulated.instance import StepEnd, VirtualInstance
from llumnix.engine.simulated.network import Link, Network
from llumnix.engine.transport import OnDone, Transfer, TransportError
from llumnix.errors import RefusedError
from llumnix.profiles import HardwareProfile, save_profile
from llumnix.wire import MigrationNews, PeerAddress
from tests.benchmarks.live import verdict

ADDRESS = PeerAddress("virtual", Link.address)
SETTINGS = HandoverSettings(timeout_s=2.0, handover_timeout_s=0.5, max_inflight_blocks=16, max_stages=4)
PROFILE = HardwareProfile(
    name="small",
    num_blocks=150,
    prefill_ms=5.0,
    prefill_ms_per_token=0.05,
    prefill_ms_per_token2=0.0,
    decode_ms=5.0,
    decode_ms_per_request=0.1,
    decode_ms_per_kv_token=0.0,
    kv_bytes_per_token=1 << 17,
    max_batched_tokens=256,
    copy_bytes_per_s=2e9,
    copy_fixed_ms=1.0,
)
NUM_INSTANCES = 3
REQUESTS_EACH = 6
LATENCY_S = 0.0005
LATE_S = 3.0
OVER_WITHIN_S = 60.0
STEPS = ("Prepare", "Ack", "Stage", "Grow", "GrowAck", "Commit", "Accepted", "Abort", "send", "receive")
"""Messages and the two ends of a copy: what a fault waits for."""


class FaultyLink(Link):
    """An instance's transports, of which the plan may fail a transfer."""

    def __init__(self, network: Network, plan: Plan, uid: int) -> None:
        super().__init__(network)
        self._plan, self._uid = plan, uid

    def send(self, peer: bytes, transfer_id: str, block_ids: Sequence[int], on_done: OnDone) -> Transfer:
        self._strike("send")
        return super().send(peer, transfer_id, block_ids, on_done)

    def fence(self) -> None:
        """With this, copies begin early (engine.early_receives)."""

    def receive(
        self,
        peer: bytes,
        transfer_id: str,
        block_ids: Sequence[int],
        on_done: OnDone,
        fence: object = None,
    ) -> Transfer:
        self._strike("receive")
        return super().receive(peer, transfer_id, block_ids, on_done)

    def _strike(self, step: str) -> None:
        if self._plan.strikes(step, self._uid) and self._plan.fault == "lose":
            raise TransportError("a fault of the benchmark")


@dataclass
class Plan:
    """One fault: what it is and where it strikes."""

    fault: str = ""
    step: str = ""
    source: int = 0
    target: int = 0
    engine_id: str = ""
    migration: str = ""
    skip: int = 0
    """So many times the step passes unharmed."""
    has_struck: bool = True
    on_strike: Callable[[], None] = lambda: None

    def strikes(self, step: str, uid: int) -> bool:
        """Whether the fault happens now, at this step of a migration at this instance."""
        if self.has_struck or step != self.step or uid not in (self.source, self.target):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.has_struck = True
        self.on_strike()
        return True


class World:
    """Instances that come and go, their requests, and the wires between them."""

    def __init__(self, builder: EngineBuilder, rng: random.Random) -> None:
        self.clock = VirtualClock()
        self.rng = rng
        self.plan = Plan()
        self.instances: dict[int, VirtualInstance] = {}
        self.engines: dict[int, EngineCore] = {}
        self.ends: Counter[str] = Counter()
        self.problems: list[str] = []
        self._builder = builder
        self._network = Network(self.clock, PROFILE)
        self._held_until: dict[tuple[int, int], float] = {}
        """By sender and receiver: nothing is delivered before, in order."""
        self._num_uids = self._num_requests = 0
        for _ in range(NUM_INSTANCES):
            self.start_instance()

    def start_instance(self) -> None:
        self._num_uids += 1
        uid = self._num_uids
        self.engines[uid] = self._builder.build()
        self.instances[uid] = VirtualInstance(
            uid,
            self.engines[uid],
            self.clock,
            FaultyLink(self._network, self.plan, uid),
            SETTINGS,
            on_step=self._step_ended,
            send=lambda message: self._deliver(uid, message),
        )

    def _step_ended(self, end: StepEnd) -> None:
        """Tokens are of no interest here."""

    def fill(self) -> None:
        """Have every instance run some requests, more than there is room for now and then."""
        for uid, instance in self.instances.items():
            for _ in range(REQUESTS_EACH - len(self.live(uid))):
                self._num_requests += 1
                number = self._num_requests
                prompt = [number % 700] * self.rng.randint(10, 500)
                request = request_of(f"{number}@0.0", prompt, self.rng.randint(40, 300), float(number))
                instance.post(lambda instance=instance, request=request: instance.submit(request))  # type: ignore[misc]

    def live(self, uid: int) -> list[str]:
        return [r for r, request in self.engines[uid].scheduler.requests.items() if not request.is_finished()]

    def run(self, seconds: float) -> None:
        until = self.clock.now + seconds
        self.clock.at(until, lambda: None)
        self.clock.run_until(lambda: self.clock.now >= until)

    def is_quiet(self) -> bool:
        return not any(instance.llumlet.is_busy for instance in self.instances.values())

    def check(self, when: str) -> None:
        for uid, instance in self.instances.items():
            self.problems += [f"{when}, #{uid}: {problem}" for problem in instance.check_integrity()]

    # ---- wires ------------------------------------------------------------------------------------------

    def _deliver(self, uid: int, message: object) -> None:
        if isinstance(message, MigrationNews) and message.state in ("committed", "aborted"):
            self.ends[message.state] += 1
        if not isinstance(message, Letter):
            return
        struck = self.plan.strikes(type(message.message).__name__, uid)
        way = (uid, message.peer)
        if struck and self.plan.fault == "late":
            self._held_until[way] = self.clock.now + LATE_S
        if struck and self.plan.fault == "lose":
            return
        letter = Letter(uid, ADDRESS, message.message)
        arrives = max(self.clock.now + LATENCY_S, self._held_until.get(way, 0.0))
        self.clock.at(arrives, lambda: self._hear(message.peer, letter))

    def _hear(self, uid: int, letter: Letter) -> None:
        instance = self.instances.get(uid)
        if instance is not None and letter.peer in self.instances:
            instance.llumlet.foresee(letter)
            instance.post(lambda: instance.llumlet.hear(letter))

    # ---- faults -----------------------------------------------------------------------------------------

    def strike(self) -> None:
        """What the plan's fault does at its moment, besides losing or holding up what struck it."""
        plan = self.plan
        match plan.fault:
            case "source dies":
                self._soon(lambda: self._kill(plan.source))
            case "target dies":
                self._soon(lambda: self._kill(plan.target))
            case "client aborts":
                for uid in (plan.source, plan.target):
                    self._post(uid, lambda uid=uid: self._abort(uid, self._ids_of(uid, plan.engine_id)))  # type: ignore[misc]
            case "owner is lost":
                for uid in (plan.source, plan.target):
                    self._post(uid, lambda uid=uid: self._lose_owner(uid))  # type: ignore[misc]
            case "operator cancels":
                for uid in (plan.source, plan.target):
                    self._post(uid, lambda uid=uid: self.instances[uid].llumlet.cancel(plan.migration, "x"))  # type: ignore[misc]
            case "source is short of blocks":
                self._post(plan.source, lambda: self._take_blocks(plan.source))
            case "target is short of blocks":
                self._post(plan.target, lambda: self._take_blocks(plan.target))
            case "priority changes":
                self._post(plan.source, lambda: self._reprioritize(plan.source, plan.engine_id))

    def _soon(self, call: Callable[[], None]) -> None:
        self.clock.at(self.clock.now, call)

    def _post(self, uid: int, call: Callable[[], None]) -> None:
        instance = self.instances.get(uid)
        if instance is not None:
            instance.post(lambda: call() if uid in self.instances else None)

    def _ids_of(self, uid: int, engine_id: str) -> list[str]:
        return [r for r in self.live(uid) if r.partition("@")[0] == engine_id.partition("@")[0]]

    def _abort(self, uid: int, ids: list[str]) -> None:
        """As InstanceCore.abort_requests."""
        self.engines[uid].abort_requests(ids)
        self.instances[uid].llumlet.requests_aborted(ids)

    def _lose_owner(self, uid: int) -> None:
        self.instances[uid].llumlet.owner_lost(0)
        self._abort(uid, self.live(uid))

    def _kill(self, uid: int) -> None:
        if self.instances.pop(uid, None) is None:
            return
        del self.engines[uid]
        for other, instance in self.instances.items():
            self._post(other, lambda instance=instance: instance.llumlet.peer_lost(uid, "killed"))  # type: ignore[misc]
        self.start_instance()

    def _take_blocks(self, uid: int) -> None:
        pool = self.engines[uid].scheduler.kv_cache_manager.block_pool
        taken = pool.get_new_blocks(pool.get_num_free_blocks())
        self.clock.at(self.clock.now + 0.3, lambda: self._post(uid, lambda: pool.free_blocks(taken)))

    def _reprioritize(self, uid: int, engine_id: str) -> None:
        if self.instances[uid].view.set_priority(engine_id, 5):
            self.instances[uid].llumlet.priority_changed(engine_id, 5)


FAULTS = (
    "lose",
    "late",
    "source dies",
    "target dies",
    "client aborts",
    "owner is lost",
    "operator cancels",
    "source is short of blocks",
    "target is short of blocks",
    "priority changes",
)


def inject(world: World, fault: str, step: str) -> bool:
    """Move one request with one fault on its way; whether it came to it."""
    rng, plan = world.rng, world.plan
    world.fill()
    world.run(rng.uniform(0.05, 0.4))
    plan.source, plan.target = rng.sample(sorted(world.instances), 2)
    ids = world.live(plan.source)
    if not ids:
        return False
    plan.engine_id, plan.fault, plan.step = rng.choice(ids), fault, step
    plan.skip, plan.has_struck, plan.on_strike = rng.choice((0, 0, 1)), False, world.strike
    source = world.instances[plan.source]

    def begin() -> None:
        try:
            plan.migration = source.llumlet.move(plan.engine_id, plan.target, ADDRESS, "benchmark")
        except RefusedError:
            plan.has_struck = True  # nothing will: it was refused
            plan.fault = ""

    source.post(begin)
    world.run(rng.uniform(0.05, 0.3))
    deadline = world.clock.now + OVER_WITHIN_S
    while not world.is_quiet() and world.clock.now < deadline:
        world.run(0.25)
    struck = plan.has_struck and bool(plan.fault)
    plan.has_struck = True
    if not world.is_quiet():
        world.problems.append(f"{plan.fault} at {plan.step}: the migration hangs")
    world.run(0.5)  # blocks that a fault has taken are given back
    world.check(f"{fault} at {step}")
    return struck


def finish(world: World) -> None:
    """Have all requests end; then every block must be free."""
    for uid in world.instances:
        world._post(uid, lambda uid=uid: world._abort(uid, world.live(uid)))  # type: ignore[misc]
    world.run(5.0)
    for uid, engine in world.engines.items():
        num_free = engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        if num_free != PROFILE.num_blocks:
            world.problems.append(f"at the end #{uid} has {num_free} free blocks of {PROFILE.num_blocks}")


def build_world(directory: Path, seed: int) -> World:
    path = directory / "profile.json"
    save_profile(PROFILE, path)
    return World(EngineBuilder(PROFILE, str(path), prefix_caching=True), random.Random(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000, help="faults")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    prepare_environment(num_threads=1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="llumnix-bench-") as directory:
        world = build_world(Path(directory), args.seed)
        struck: Counter[str] = Counter()
        num_tried = 0
        while struck.total() < args.requests and not world.problems:
            num_tried += 1
            fault, step = world.rng.choice(FAULTS), world.rng.choice(STEPS)
            struck[fault] += inject(world, fault, step)
        finish(world)
    for fault, count in struck.most_common():
        print(f"{count:>6} x {fault}")
    print(
        f"{num_tried} migrations tried, of which ended: {dict(world.ends)}; {world.clock.now:.0f} virtual s"
    )
    for problem in world.problems[:10]:
        print("  ", problem)
    clean = struck.total() if not world.problems else struck.total() - 1
    print(f"books clean after {clean} of {args.requests} faults: {verdict(clean == args.requests)}")


if __name__ == "__main__":
    main()
