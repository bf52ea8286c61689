"""The target answers PREPARE only with what it can keep: blocks, and a grammar as far as the source's."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest

from llumnix.core.handover.actions import Reserve
from llumnix.core.handover.epochs import Epoch
from llumnix.core.handover.events import Event, Reserved, ReserveFailed
from llumnix.core.handover.messages import Prepare
from llumnix.engine.arrivals import Arrivals
from llumnix.engine.migration.state import PrepareInfo, encode
from tests.engine.migration.lab import BLOCK_SIZE, Lab, prompt, sampling
from tests.engine.migration.test_exact import KINDS


@dataclass
class Turns:
    """The target's engine thread: makes the calls that it is asked for until an event is told."""

    told: list[Event] = field(default_factory=list)
    asked: queue.Queue[Callable[[], object]] = field(default_factory=queue.Queue)

    def answer(self, lab: Lab, info: PrepareInfo) -> tuple[Event, Arrivals]:
        arrivals = Arrivals(lab.port.target, BLOCK_SIZE, time.monotonic, self.asked.put, self.told.append)
        prepare = Prepare(
            migration="m",
            request_id="a",
            epoch=Epoch(0, 1),
            owner=0,
            priority=0,
            adapter="",
            num_tokens=info.num_computed_tokens,
            num_blocks=6,
            block_hashes=(),
            output_tokens=tuple(info.output_token_ids),
            fingerprint=(),
            request=msgspec.msgpack.encode(encode(info)),
        )
        arrivals.reserve(Reserve(prepare))
        while not self.told:
            self.asked.get(timeout=60)()
        [event] = self.told
        return event, arrivals


def identity(lab: Lab, kind: str) -> PrepareInfo:
    result = lab.submit("a", prompt(70), sampling(**KINDS[kind]))
    while len(result.tokens) < 6:
        lab.step()
    return lab.port.source.identity("a")


@pytest.mark.parametrize("kind", ["greedy", "json schema"])
def test_prepare_is_answered_once_blocks_are_reserved_and_the_grammar_has_caught_up(
    labs: tuple[Lab, Lab], kind: str
) -> None:
    source, target = labs
    event, arrivals = Turns().answer(target, identity(source, kind))
    assert event == Reserved("m", 0, 6) and len(arrivals) == 1
    [reservation] = target.port.target.reservations()
    assert target.port.target.is_ready(reservation)
    arrivals.free("m")
    assert target.port.check_integrity() == []


def test_a_grammar_that_rejects_the_output_refuses_and_leaves_nothing(labs: tuple[Lab, Lab]) -> None:
    source, target = labs
    info = identity(source, "json schema")
    wrong = msgspec.structs.replace(
        info, output_token_ids=[5] * len(info.output_token_ids), last_block_hash=None
    )
    event, arrivals = Turns().answer(target, wrong)
    assert event == ReserveFailed("m", "its grammar rejects a token that the source has sent")
    assert len(arrivals) == 0
    assert target.port.target.reservations() == []
    assert target.port.check_integrity() == []
