"""A frozen request runs nowhere until it is released or let go, whatever an operator does meanwhile."""

from __future__ import annotations

from tests.sim.engines import build_engine, profile_of, submit

from llumnix.core.handover.settings import HandoverSettings  # isort: skip
from llumnix.engine.simulated.clock import VirtualClock  # isort: skip
from llumnix.engine.simulated.instance import VirtualInstance  # isort: skip
from llumnix.engine.simulated.network import Link, Network  # isort: skip


def test_preempted_between_two_steps_it_does_not_run_on_in_the_next() -> None:
    """As vLLM's reset_prefix_cache does with what runs."""
    engine, clock = build_engine(), VirtualClock()
    instance = VirtualInstance(
        1,
        engine,
        clock,
        Link(Network(clock, profile_of(engine))),
        HandoverSettings(),
        on_step=lambda _: None,
        send=lambda _: None,
    )
    frozen, other = submit(engine, 1, 40, 100), submit(engine, 2, 40, 100)
    for _ in range(3):
        engine.step()
    instance.port.source.freeze(frozen)
    num_tokens = {r: instance.port.num_tokens(r) for r in (frozen, other)}
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    for _ in range(3):
        instance.llumlet.before_step()
        engine.step()
    assert instance.port.num_tokens(frozen) == num_tokens[frozen]
    assert instance.port.num_tokens(other) == num_tokens[other] + 3
    assert instance.port.check_integrity() == []
