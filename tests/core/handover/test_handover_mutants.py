"""The model notices what it is there to notice: controls, and walks of the machines as they are."""

from __future__ import annotations

import pytest

from .mutants import MUTANTS
from .test_handover_stateful import HandoverMachine
from .walks import walk

NUM_WALKS = 400
NUM_STEPS = 30


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_variant_is_caught(name: str) -> None:
    world, faults = MUTANTS[name]
    machine = type(name, (HandoverMachine,), {"world_type": world, "focus": faults})
    with pytest.raises((AssertionError, KeyError, IndexError)):
        for seed in range(NUM_WALKS):
            walk(machine(), seed, NUM_STEPS)


@pytest.mark.parametrize("first_seed", range(0, 60, 20))
def test_the_machines_as_they_are_are_not(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        walk(HandoverMachine(), seed, NUM_STEPS)
