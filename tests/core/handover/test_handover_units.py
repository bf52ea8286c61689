"""What the model does not show: wire types, refusals' words, limits, answers to strangers."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from llumnix.core.events import CommandRefused
from llumnix.core.handover.actions import Action, CopyBlocks, Freeze, Release, ReleaseCopy, SendToPeer
from llumnix.core.handover.admission import mismatch
from llumnix.core.handover.epochs import Epoch, engine_id, split_engine_id
from llumnix.core.handover.events import (
    CopyDone,
    PeerMessage,
    Quiesced,
    RequestPreempted,
    RequestSnapshot,
    StartMigration,
    Stepped,
)
from llumnix.core.handover.host import Handovers
from llumnix.core.handover.messages import (
    NOTICES,
    PEER_MESSAGES,
    Abort,
    AbortRequest,
    Accepted,
    Ack,
    Adopted,
    ChangePriority,
    Commit,
    Grow,
    GrowAck,
    Moved,
    Prepare,
    Refuse,
    Stage,
)
from llumnix.core.handover.owner import RequestOwner, answer_to_stray
from llumnix.core.handover.owner_events import (
    AbortAt,
    AdoptedAt,
    AttemptPlaced,
    Fail,
    Fenced,
    MovedFrom,
    Outputs,
    StartAttempt,
)
from llumnix.core.handover.settings import HandoverSettings

E01 = Epoch(0, 1)
REQUEST = RequestSnapshot("r0", Epoch(0, 0), 0, 0, "", 20, 19, (), (7,), b"x")
PREPARE = REQUEST.prepare("m1-1", E01, 12, (("dtype", "bfloat16"),))
MESSAGES = (
    replace(PREPARE, block_hashes=(b"\x00\xff",), adapter="sql"),
    Stage("m", 1, 0, 3),
    Grow("m", 5),
    Commit("m", E01, (1, 2), 9, -10, b"\x80state"),
    AbortRequest("m", "r0@0.1"),
    ChangePriority("m", "r0@0.1", -3),
    Ack("m", 1, 5),
    Refuse("m", "no room"),
    GrowAck("m", 5),
    Accepted("m"),
    Abort("m", "timed out"),
    Moved("r0", Epoch(0, 0), E01, 2, 17, False),
    Adopted("r0", E01, 17),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_msgpack_with_its_type(message: object) -> None:
    encoded = msgspec.msgpack.encode(message)
    assert msgspec.msgpack.decode(encoded, type=type(message)) == message


def test_every_message_type_is_listed_and_tried() -> None:
    assert {type(message) for message in MESSAGES} == {*PEER_MESSAGES, *NOTICES}


@pytest.mark.parametrize("request_id", ["cmpl-1", "0_a@b", "x@1.2", "..."])
def test_an_engine_side_id_gives_back_request_and_epoch(request_id: str) -> None:
    assert split_engine_id(engine_id(request_id, Epoch(3, 12))) == (request_id, Epoch(3, 12))


@pytest.mark.parametrize("wrong", ["r0", "@1.2", "r0@1", "r0@1.x", "r0@-1.2", ""])
def test_a_foreign_id_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="no engine-side id"):
        split_engine_id(wrong)


def test_the_larger_epoch_is_that_of_the_later_attempt() -> None:
    assert Epoch(0, 9) < Epoch(1, 0) < Epoch(1, 1)


def test_a_mismatch_names_the_field_and_both_values() -> None:
    theirs = (("block_size", "16"), ("dtype", "float16"))
    ours = (("block_size", "16"), ("dtype", "bfloat16"))
    assert mismatch(theirs, theirs) is None
    assert (
        mismatch(theirs, ours) == "the engines differ in dtype: float16 at the source, bfloat16 at the target"
    )
    assert mismatch(theirs, (*theirs, ("tp", "2"))) == (
        "the engines differ in tp: unknown at the source, 2 at the target"
    )


def handovers(uid: int, **changes: int) -> Handovers:
    return Handovers(uid, PREPARE.fingerprint, 2, replace(HandoverSettings(), **changes))


def start(source: Handovers, name: str, target: int = 2) -> list[Action]:
    snapshot = replace(REQUEST, request_id=name)
    return source.handle(StartMigration(source.new_id(), target, snapshot), 0.0)


def test_an_instance_takes_part_in_so_many_migrations_in_both_directions() -> None:
    one, two = handovers(1), handovers(2)
    start(one, "a")
    [sent] = start(one, "b")
    with pytest.raises(CommandRefused, match="the source takes part in 2 migrations already"):
        start(one, "c")
    assert isinstance(sent, SendToPeer)
    start(two, "d", target=1)
    start(two, "e", target=1)
    [answer] = two.handle(PeerMessage(1, sent.message), 0.0)
    assert isinstance(answer, SendToPeer) and isinstance(answer.message, Refuse)
    assert "takes part in 2 migrations" in answer.message.reason


def test_a_request_is_not_moved_twice_at_a_time_nor_to_where_it_is() -> None:
    one = handovers(1)
    with pytest.raises(CommandRefused, match="at that instance already"):
        start(one, "a", target=1)
    start(one, "a")
    with pytest.raises(CommandRefused, match="being moved already"):
        start(one, "a", target=3)
    assert one.migration_of("a@0.0") == "m1-2" and one.next_deadline() == 10.0


def test_each_try_has_an_epoch_of_its_own() -> None:
    one = handovers(1)
    epochs = []
    for _ in range(3):
        [sent] = start(one, "a")
        assert isinstance(sent, SendToPeer) and isinstance(sent.message, Prepare)
        epochs.append(sent.message.epoch)
        one.handle(PeerMessage(2, Refuse(sent.message.migration, "no")), 0.0)
    assert epochs == [Epoch(0, 1), Epoch(0, 2), Epoch(0, 3)]


def test_a_stage_is_copied_in_pieces_within_the_limit_on_blocks_under_way() -> None:
    one = handovers(1, max_inflight_blocks=8)  # of two migrations
    start(one, "a")
    actions = one.handle(PeerMessage(2, Ack("m1-1", 0, 12)), 0.0)
    pieces = []
    while copies := [action for action in actions if isinstance(action, CopyBlocks)]:
        [copy] = copies
        pieces.append((copy.first_block, copy.num_blocks))
        actions = one.handle(CopyDone("m1-1", copy.copy), 0.0)
        assert actions[0] == ReleaseCopy("m1-1", copy.copy)
    assert pieces == [(0, 4), (4, 4), (8, 1)]


def test_a_request_that_loses_its_blocks_after_commit_does_not_run_on_here() -> None:
    one = handovers(1)
    start(one, "a")
    actions = one.handle(PeerMessage(2, Ack("m1-1", 0, 12)), 0.0)
    assert any(isinstance(action, CopyBlocks) for action in actions)
    [_, freeze] = one.handle(CopyDone("m1-1", 1), 0.0)
    assert isinstance(freeze, Freeze)
    stage, _, commit = one.handle(Quiesced("a@0.0", (8,), 21, 20, b""), 0.0)
    assert isinstance(stage, SendToPeer) and isinstance(stage.message, Stage)
    assert isinstance(commit, SendToPeer) and isinstance(commit.message, Commit)
    assert one.handle(CopyDone("m1-1", 2), 0.0) == [ReleaseCopy("m1-1", 2)]
    assert one.handle(RequestPreempted("a@0.0"), 0.0) == []
    assert one.handle(Stepped("a@0.0", 21, 0), 0.0) == []
    release, *_ = one.handle(PeerMessage(2, Accepted("m1-1")), 0.0)
    assert release == Release("a@0.0")


@pytest.mark.parametrize("message", [Stage("m9-9", 1, 0, 1), Grow("m9-9", 3), MESSAGES[3], Ack("m9-9", 0, 1)])
def test_a_message_of_an_unknown_migration_is_answered_with_abort(
    message: Stage | Grow | Commit | Ack,
) -> None:
    [answer] = handovers(1).handle(PeerMessage(2, message), 0.0)
    assert isinstance(answer, SendToPeer) and answer.peer == 2
    assert isinstance(answer.message, Abort) and answer.message.migration == message.migration


@pytest.mark.parametrize("message", [Abort("m9-9", "why"), Accepted("m9-9"), Refuse("m9-9", "why")])
def test_an_end_of_an_unknown_migration_needs_no_answer(message: Abort | Accepted | Refuse) -> None:
    assert handovers(1).handle(PeerMessage(2, message), 0.0) == []


def test_a_stranger_is_told_to_stop_but_not_one_that_has_stopped() -> None:
    running = Outputs(3, "r0", E01, 5, (1,), None)
    assert answer_to_stray(running) == [AbortAt(3, "r0", E01)]
    assert answer_to_stray(replace(running, finish_reason="stop")) == []
    assert answer_to_stray(AdoptedAt(3, Adopted("r0", E01, 5))) == [AbortAt(3, "r0", E01)]
    assert answer_to_stray(MovedFrom(3, Moved("r0", Epoch(0, 0), E01, 4, 5, True))) == [AbortAt(4, "r0", E01)]
    assert answer_to_stray(AttemptPlaced(3, "r0", E01)) == [AbortAt(3, "r0", E01)]
    assert answer_to_stray(Fenced(3, "dead")) == []


def test_a_request_that_loses_every_instance_it_is_given_is_given_up() -> None:
    owner = RequestOwner("r0", replace(HandoverSettings(), max_attempts=3), 0.0)
    actions = owner.start()
    for attempt in range(3):
        assert actions == [StartAttempt(Epoch(attempt, 0), (), actions[-1].reason)]  # type: ignore[union-attr]
        owner.handle(AttemptPlaced(attempt, "r0", Epoch(attempt, 0)), 0.0)
        actions = owner.handle(Fenced(attempt, "killed by signal 11"), 0.0)
    [failed] = actions
    assert isinstance(failed, Fail) and "killed by signal 11" in failed.reason
    assert owner.is_over
