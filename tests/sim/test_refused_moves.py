"""What a llumlet tells of requests that were to leave and did not."""

from __future__ import annotations

from pathlib import Path

from tests.sim.engines import build_engine as build_engine  # first: sets what vLLM reads when it is imported

from llumnix.core.victims import MoveGoal, Queued  # isort: skip
from llumnix.engine.llumlet import Llumlet  # isort: skip
from llumnix.wire import MoveAway  # isort: skip
from tests.benchmarks.bench_faults import ADDRESS, World, build_world  # isort: skip

ORDER = MoveAway(2, ADDRESS, "i0 is drained", 0.5, MoveGoal(queued=Queued.GO_TOO))


def filled(directory: Path) -> World:
    world = build_world(directory, seed=1)
    world.fill()
    world.run(1.0)
    return world


def refusals(llumlet: Llumlet) -> dict[str, int]:
    return dict(llumlet.moves_under_way().refusals)


def test_an_instance_without_a_transport_says_so_and_goes_on(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.instances[1].llumlet._transports.refusal = "no way out"  # type: ignore[misc]
    llumlet, num_live = world.instances[1].llumlet, len(world.live(1))
    llumlet.move_away(ORDER)
    assert num_live > 0 and refusals(llumlet) == {"no way out": num_live}


def test_the_targets_refusals_are_counted_and_soon_forgotten(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.instances[2].llumlet.close("is cordoned")
    llumlet = world.instances[1].llumlet
    world.instances[1].post(lambda: llumlet.move_away(ORDER))
    world.run(0.2)
    told = refusals(llumlet)
    assert set(told) == {"the target is cordoned"} and told["the target is cordoned"] >= 1
    world.run(4.0)
    assert refusals(llumlet) == {}
