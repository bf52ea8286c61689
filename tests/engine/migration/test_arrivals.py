"""The target answers PREPARE only with what it can keep: blocks, and a grammar as far as the source's."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest

from llumnix.core.handover.actions import Adopt, Reserve
from llumnix.core.handover.epochs import Epoch
from llumnix.core.handover.events import AdoptFailed, Event, Reserved, ReserveFailed
from llumnix.core.handover.messages import Commit, Prepare, Stage
from llumnix.engine.arrivals import Arrivals
from llumnix.engine.early_receives import EarlyReceives
from llumnix.engine.migration.state import PrepareInfo, encode
from llumnix.engine.transport import KVBlocks
from llumnix.engine.transport_set import TransportSet
from tests.engine.migration.lab import BLOCK_SIZE, Lab, prompt, sampling
from tests.engine.migration.test_exact import KINDS


@dataclass
class Turns:
    """The target's engine thread: makes the calls that it is asked for until an event is told."""

    told: list[Event] = field(default_factory=list)
    asked: queue.Queue[Callable[[], object]] = field(default_factory=queue.Queue)

    def answer(
        self, lab: Lab, info: PrepareInfo, early: EarlyReceives | None = None
    ) -> tuple[Event, Arrivals]:
        target = lab.port.target
        arrivals = Arrivals(target, BLOCK_SIZE, time.monotonic, self.asked.put, self.told.append, early)
        arrivals.reserve(Reserve(prepare_of(info)))
        while not self.told:
            self.asked.get(timeout=60)()
        [event] = self.told
        return event, arrivals


def prepare_of(info: PrepareInfo) -> Prepare:
    return Prepare(
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


def test_a_request_is_not_adopted_while_a_copy_that_nobody_told_of_may_write_its_blocks(
    labs: tuple[Lab, Lab],
) -> None:
    source, target = labs
    views = target.port.kv_views()
    transports = TransportSet(KVBlocks(views, views[0].shape[0]), "shm", "127.0.0.1", one_node=True)
    turns = Turns()
    early = EarlyReceives(transports, turns.asked.put, lambda *_: None)
    info = identity(source, "greedy")
    _, arrivals = turns.answer(target, info, early)
    prepare = prepare_of(info)
    early.begin(Stage("m", 1, 0, 1), transports.address)
    arrivals.adopt(Adopt(prepare, Commit("m", prepare.epoch, (), 0, 0, b"")))
    assert turns.told[-1] == AdoptFailed("m", "a copy came that the source has not told of")
    early.begin(Stage("m", 2, 1, 1), transports.address)
    arrivals.free("m")
    assert len(arrivals) == 1
    turns.asked.get(timeout=60)()
    assert len(arrivals) == 0 and target.port.check_integrity() == []
    transports.close()
