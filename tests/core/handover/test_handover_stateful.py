"""The whole protocol under any interleaving of work and faults: one live epoch, every token once, no leak."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from llumnix.core.handover.events import CancelMigration, Closed, Opened, Pressure

from .faults import FaultyWorld
from .instance_model import Instance
from .pool_model import Entry

MAX_INSTANCES = 8
FAULTS = (
    "preempt",
    "abort",
    "pressure",
    "cordon",
    "cancel",
    "die",
    "cut_off",
    "reconnect",
    "break",
    "silence",
    "stall",
    "lose",
)
picks = st.integers(0, 15)


def possible(fault: str) -> Callable[[HandoverMachine], bool]:
    """Some faults at a time: where all happen, none gets far."""
    return lambda machine: fault in machine.faults


class HandoverMachine(RuleBasedStateMachine):
    """Faults by hypothesis, the work between them by the world's own dice."""

    world_type = FaultyWorld
    focus: frozenset[str] = frozenset()
    """Faults to search with; empty: whichever are drawn."""
    faults: frozenset[str] = frozenset()

    @initialize(
        seed=st.integers(0, 2**16),
        requests=st.integers(1, 4),
        churn=st.sampled_from((0.02, 0.1, 0.4)),
        faults=st.frozensets(st.sampled_from(FAULTS), max_size=6),
    )
    def begin(self, seed: int, requests: int, churn: float, faults: frozenset[str]) -> None:
        self.faults = self.focus or faults
        self.world = self.world_type(seed)
        self.world.churn = churn
        self.end = (False, True)
        for _ in range(requests):
            self.world.new_request(3 + self.world.rng.randrange(8), 5 + self.world.rng.randrange(25))

    def entry(self, pick: int) -> tuple[Instance, Entry] | None:
        """A request somewhere; for an even pick one that is being moved, if there is one."""
        entries = self.world.entries()
        moving = [(i, e) for i, e in entries if i.handovers.migration_of(e.id)]
        able = moving if moving and pick % 2 == 0 else entries
        return able[pick // 2 % len(able)] if able else None

    def living(self, pick: int) -> Instance | None:
        """An instance; for an even pick one that takes part in a migration, or has just sent COMMIT."""
        living = self.world.living()
        involved = [instance for instance in living if instance.handovers.states()]
        committing = [i for i in involved if "committing" in i.handovers.states().values()]
        if committing and pick % 4 == 0:
            return committing[pick // 4 % len(committing)]
        able = involved if involved and pick % 2 == 0 else living
        return able[pick // 2 % len(able)] if able else None

    def goes_on(self) -> None:
        self.world.run(self.world.rng.randrange(20))

    # ---- work ----

    @rule(moves=st.integers(1, 25))
    def work_goes_on(self, moves: int) -> None:
        self.world.run(moves)

    @rule(pick=picks, to=picks, moves=st.integers(0, 40))
    def migrate(self, pick: int, to: int, moves: int) -> None:
        found, target = self.entry(pick), self.living(to)
        if found and target:
            self.world.migrate(found[1], found[0], target.uid)
            self.world.run(moves)

    @precondition(lambda self: len(self.world.specs) < 6)
    @rule(num_prompt=st.integers(1, 12), num_outputs=st.integers(1, 30))
    def new_request(self, num_prompt: int, num_outputs: int) -> None:
        self.world.new_request(num_prompt, num_outputs)

    @rule(seconds=st.sampled_from((0.5, 1.0, 2.0, 5.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.advance(seconds)
        self.goes_on()

    @rule(pick=picks, priority=st.integers(-2, 2))
    def priority_changes(self, pick: int, priority: int) -> None:
        if (found := self.entry(pick)) is not None:
            found[0].engine.set_priority(found[1].id, priority)

    # ---- faults and refusals ----

    @precondition(possible("preempt"))
    @rule(pick=picks)
    def preempt(self, pick: int) -> None:
        if (found := self.entry(pick)) is not None:
            found[0].engine.preempt(found[1])
        self.goes_on()

    @precondition(possible("abort"))
    @rule(pick=picks)
    def client_aborts(self, pick: int) -> None:
        if (found := self.entry(pick)) is not None:
            self.world.abort_client(found[1].spec.name)
        self.goes_on()

    @precondition(possible("pressure"))
    @rule(pick=picks, count=st.integers(1, 30))
    def pressure(self, pick: int, count: int) -> None:
        if (instance := self.living(pick)) is not None:
            instance.tell(Pressure(count))
        self.goes_on()

    @precondition(possible("cordon"))
    @rule(pick=picks, closed=st.booleans())
    def cordon(self, pick: int, closed: bool) -> None:
        if (instance := self.living(pick)) is not None:
            instance.tell(Closed("is cordoned") if closed else Opened())
        self.goes_on()

    @precondition(possible("cancel"))
    @rule(pick=picks)
    def operator_cancels(self, pick: int) -> None:
        if (instance := self.living(pick)) is not None:
            for migration in instance.handovers.states():
                instance.tell(CancelMigration(migration, "cancelled by an operator"))
        self.goes_on()

    @precondition(possible("die"))
    @precondition(lambda self: len(self.world.instances) < MAX_INSTANCES)
    @rule(pick=picks, outputs_survive=st.booleans(), replaced=st.booleans())
    def instance_dies(self, pick: int, outputs_survive: bool, replaced: bool) -> None:
        if (instance := self.living(pick)) is not None:
            self.world.kill(instance.uid, outputs_survive=outputs_survive)
        if replaced:
            self.world.spawn()
        self.goes_on()

    @precondition(possible("cut_off"))
    @precondition(lambda self: len(self.world.instances) < MAX_INSTANCES)
    @rule(pick=picks, notices=st.booleans(), replaced=st.booleans())
    def instance_is_cut_off(self, pick: int, notices: bool, replaced: bool) -> None:
        if (instance := self.living(pick)) is not None:
            self.world.cut_off(instance.uid, notices=notices)
        if replaced:
            self.world.spawn()
        self.goes_on()

    @precondition(possible("reconnect"))
    @rule(pick=picks, outputs_survive=st.booleans())
    def instance_reconnects(self, pick: int, outputs_survive: bool) -> None:
        if (instance := self.living(pick)) is not None:
            self.world.reconnect(instance.uid, outputs_survive=outputs_survive)
        self.goes_on()

    @precondition(possible("break"))
    @rule(a=picks, b=picks, told=st.tuples(st.booleans(), st.booleans()))
    def link_breaks(self, a: int, b: int, told: tuple[bool, bool]) -> None:
        one, other = self.living(a), self.living(b)
        if one and other and one is not other:
            self.world.break_link(one.uid, other.uid, told=told)
        self.goes_on()

    @precondition(possible("silence"))
    @rule(a=picks, b=picks)
    def link_falls_silent(self, a: int, b: int) -> None:
        one, other = self.living(a), self.living(b)
        if one and other and one is not other:
            self.world.mute(one.uid, other.uid)
        self.goes_on()

    @precondition(possible("stall"))
    @rule(pick=picks, stalled=st.booleans())
    def outputs_stall(self, pick: int, stalled: bool) -> None:
        if (instance := self.living(pick)) is not None:
            self.world.stall(instance.uid, stalled=stalled)
        self.goes_on()

    @precondition(possible("lose"))
    @rule()
    def message_is_lost(self) -> None:
        self.world.lose_message()
        self.goes_on()

    @rule(mute=st.booleans(), with_instance=st.sampled_from((True, True, True, False)))
    def choose_the_end(self, mute: bool, with_instance: bool) -> None:
        self.end = (mute, with_instance)

    def teardown(self) -> None:
        # After a failure the world is in pieces, and what that leads to would hide the failure.
        if hasattr(self, "world") and sys.exc_info()[0] is None:
            mute, with_instance = self.end
            self.world.check()
            self.world.settle(mute=mute, with_instance=with_instance)


HandoverMachine.TestCase.settings = hypothesis_settings(
    max_examples=100, stateful_step_count=30, deadline=None
)
TestHandoverUnderAnyFaults = HandoverMachine.TestCase
