"""Long walks through the world by plain dice: more varied than hypothesis' examples, but not shrunk.

`python -m tests.core.handover.walks FIRST_SEED SECONDS` walks for that long and says which seed failed.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from random import Random

from .test_handover_stateful import FAULTS, MAX_INSTANCES, HandoverMachine

Step = Callable[[HandoverMachine, Random], None]

WORK: tuple[Step, ...] = (
    lambda m, r: m.work_goes_on(r.randint(1, 25)),
    lambda m, r: m.work_goes_on(r.randint(1, 60)),
    lambda m, r: m.migrate(r.randrange(16), r.randrange(16), r.randint(0, 40)),
    lambda m, r: m.time_passes(r.choice((0.5, 1.0, 2.0, 5.0))),
    lambda m, r: m.priority_changes(r.randrange(16), r.randint(-2, 2)),
)
OF_FAULT: dict[str, Step] = {
    "preempt": lambda m, r: m.preempt(r.randrange(16)),
    "abort": lambda m, r: m.client_aborts(r.randrange(16)),
    "pressure": lambda m, r: m.pressure(r.randrange(16), r.randint(1, 30)),
    "cordon": lambda m, r: m.cordon(r.randrange(16), r.random() < 0.3),
    "cancel": lambda m, r: m.operator_cancels(r.randrange(16)),
    "die": lambda m, r: m.instance_dies(r.randrange(16), r.random() < 0.5, r.random() < 0.8),
    "cut_off": lambda m, r: m.instance_is_cut_off(r.randrange(16), r.random() < 0.5, r.random() < 0.8),
    "reconnect": lambda m, r: m.instance_reconnects(r.randrange(16), r.random() < 0.7),
    "break": lambda m, r: m.link_breaks(
        r.randrange(16), r.randrange(16), (r.random() < 0.5, r.random() < 0.5)
    ),
    "silence": lambda m, r: m.link_falls_silent(r.randrange(16), r.randrange(16)),
    "stall": lambda m, r: m.outputs_stall(r.randrange(16), r.random() < 0.6),
    "lose": lambda m, r: m.message_is_lost(),
}


def walk(machine: HandoverMachine, seed: int, num_steps: int) -> None:
    """From the start to the settled end; a failure is an AssertionError or what the model trips over."""
    rng = Random(seed)
    faults = frozenset(rng.sample(FAULTS, rng.randint(0, 5)))
    machine.begin(rng.randrange(2**16), rng.randint(1, 4), rng.choice((0.02, 0.1, 0.4)), faults)
    steps = [*WORK, *(OF_FAULT[fault] for fault in sorted(machine.faults))]
    for _ in range(num_steps):
        step = rng.choice(steps)
        if len(machine.world.specs) < 6 and rng.random() < 0.2:
            machine.new_request(rng.randint(1, 12), rng.randint(1, 30))
        if len(machine.world.instances) < MAX_INSTANCES or step not in (OF_FAULT["die"], OF_FAULT["cut_off"]):
            step(machine, rng)
    machine.end = (rng.random() < 0.3, rng.random() < 0.9)
    machine.teardown()


def main(first_seed: int, seconds: float) -> None:
    until, seed = time.monotonic() + seconds, first_seed
    ends: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    while time.monotonic() < until:
        machine = HandoverMachine()
        try:
            walk(machine, seed, 40)
        except Exception:
            sys.stdout.write(f"seed {seed} failed\n")
            raise
        ends.update(machine.world.ends.values())
        outcomes.update(machine.world.outcomes)
        seed += 1
    sys.stdout.write(f"{seed - first_seed} walks: requests {dict(ends)}, migrations {dict(outcomes)}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
