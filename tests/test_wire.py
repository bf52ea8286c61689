"""Messages survive their encoding, and nothing but a known message is taken."""

from __future__ import annotations

import msgspec
import pytest

from llumnix.core.events import Beat, DispatchEntry, HeldRequests
from llumnix.core.load import ClassLoad, InstanceReport
from llumnix.core.victims import MoveGoal
from llumnix.wire import (
    AbortRequest,
    ApiServerServes,
    ApiServerUp,
    CurveKeys,
    Done,
    EngineServes,
    EngineUp,
    Heartbeat,
    Held,
    LostContact,
    MigrationNews,
    Move,
    MoveAway,
    PeerAddress,
    PeerGone,
    Replay,
    Report,
    RequestRow,
    RequestTable,
    SetPriority,
    StateOp,
    StopEngine,
    StopServing,
    Table,
    TableEntry,
    TellRequests,
    codec,
)

REPORT = InstanceReport(
    uid=3,
    seq=9,
    block_size=16,
    total_blocks=100,
    used_blocks=7,
    max_running=8,
    running=1,
    waiting=2,
    queued_blocks=5,
    head_blocks=2,
    classes={-10: ClassLoad(1, 0, 7), 0: ClassLoad(0, 2, 0)},
    step_ms=2.5,
    tokens_per_s=10.0,
    taken={0: 4, 1: 2},
)

TO_MANAGER = [
    EngineUp(1, b"ready", PeerAddress("ipc:///x", b"secret")),
    MigrationNews("m1", "r@0.0", 1, 2, "why", "committed", "", 2, 5, 1, 4096, 3.0, 7.5),
    EngineServes(1),
    Report(REPORT),
    Heartbeat(Beat(1, 0.1, None, 0.5)),
    RequestTable(1, (RequestRow("r", 0, True, 5, 2, 1, 1.5, 0, 0),)),
    StateOp(4, "pause", (b"a", b"b")),
    StateOp(4, "pause", None),
    Held(HeldRequests(0, 2, 900, 560, -10), None),
    Held(HeldRequests(0, 0, 0, 0, 0), ()),
    ApiServerUp(0, 17),
    ApiServerServes(0),
    LostContact(0, 1, "died"),
    Done(1, "no"),
]
FROM_MANAGER = [
    Replay(((b"a", b"b"),), True),
    Table(2, (TableEntry(DispatchEntry(1, "i0", True), b"ready"),)),
    SetPriority(1, "r", -10),
    TellRequests(1),
    AbortRequest(1, "r", "why"),
    Move(1, "r@0.0", 2, PeerAddress("ipc:///x", b"secret"), "why"),
    MoveAway(2, PeerAddress("ipc:///x", b"secret"), "why", 0.5, MoveGoal(headroom_blocks={-10: 751})),
    PeerGone(2, "died"),
    StopServing(3.0),
    StopEngine(),
]


@pytest.mark.parametrize("message", TO_MANAGER, ids=lambda m: type(m).__name__)
def test_what_the_manager_is_told_survives_its_encoding(message: object) -> None:
    tools = codec()
    assert tools.to_manager.decode(tools.encoder.encode(message)) == message


@pytest.mark.parametrize("message", FROM_MANAGER, ids=lambda m: type(m).__name__)
def test_what_the_manager_says_survives_its_encoding(message: object) -> None:
    tools = codec()
    assert tools.from_manager.decode(tools.encoder.encode(message)) == message


def test_a_message_of_another_channel_or_type_is_refused() -> None:
    tools = codec()
    for payload in (
        tools.encoder.encode(StopEngine()),
        msgspec.msgpack.encode({"type": "Report", "report": 3}),
    ):
        with pytest.raises(msgspec.ValidationError):
            tools.to_manager.decode(payload)


def test_keys_do_not_show_in_a_repr() -> None:
    assert "hidden" not in repr(CurveKeys("public", "hidden"))
    assert "hidden" not in repr(PeerAddress("ipc:///x", b"hidden"))
