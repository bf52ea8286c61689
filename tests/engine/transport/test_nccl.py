"""The NCCL wrapper and its plane against a fake library: signatures, errors, limits, aborts."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llumnix.engine.transport import TransportError
from llumnix.engine.transport.nccl import NcclPlane, NcclPlanes
from llumnix.engine.transport.nccl_library import Config, NcclLibrary, UniqueId, nonblocking_config
from llumnix.engine.transport.plane import Geometry, Mailbox
from tests.engine.transport.fakes import REMOTE_ERROR, ConfigStruct, FakeGpu, FakeNccl
from tests.engine.transport.sides import QUICK, Side

SHORT = Geometry(4096, 2, open_timeout_s=0.3, io_timeout_s=0.3)
LONG = Geometry(4096, 2, open_timeout_s=60.0, io_timeout_s=60.0)


class _Pair:
    """Two planes whose mailboxes are joined; each is used by one thread at a time."""

    def __init__(self, nccl: FakeNccl, geometry: Geometry) -> None:
        library = NcclLibrary(nccl)
        self.mailboxes: list[Mailbox] = []
        for other in (1, 0):
            self.mailboxes.append(
                Mailbox(lambda k, v, _fds, other=other: self.mailboxes[other].put(k, v, []))
            )
        self.sender, self.receiver = (
            NcclPlane(geometry, mailbox, library, FakeGpu(nccl)) for mailbox in self.mailboxes
        )

    def open(self) -> None:
        side = threading.Thread(target=self.receiver.open_receiver)
        side.start()
        self.sender.open_sender()
        side.join()


def test_the_configuration_is_that_of_nccl_h() -> None:
    offsets = {name: getattr(Config, name).offset for name, _ in Config._fields_}
    assert list(offsets.values()) == [0, 8, 12, 16, 20, 24, 28, 32, 40, 44, 48, 56, 60, 64, 68]
    assert ctypes.sizeof(Config) == 72
    assert [getattr(ConfigStruct, name).offset for name, *_ in ConfigStruct._fields_] == list(
        offsets.values()
    )
    config = nonblocking_config(4)
    assert (config.size, config.magic, config.version) == (72, 0xCAFEBEEF, 22700)
    assert (config.blocking, config.minCTAs, config.maxCTAs) == (0, 1, 4)
    assert config.netName is config.commName is None
    assert {config.cgaClusterSize, config.splitShare, config.trafficClass, config.nvlsCTAs} == {-(2**31)}
    assert ctypes.sizeof(UniqueId) == 128


def test_every_byte_of_id_and_configuration_reaches_the_library() -> None:
    nccl = FakeNccl()
    library = NcclLibrary(nccl)
    unique_id = library.unique_id()
    assert unique_id.startswith(b"\x00\xff") and unique_id.endswith(b"\x81\x00") and len(unique_id) == 128
    comm = library.init_rank(unique_id, 1, 4)
    assert nccl.comms[comm].pair == unique_id and nccl.comms[comm].rank == 1
    assert nccl.configs[0]["size"] == 72 and nccl.configs[0]["max_ctas"] == 4
    assert nccl.configs[0]["blocking"] == 0 and nccl.configs[0]["magic"] == 0xCAFEBEEF
    library.abort(comm)


def test_a_library_that_is_too_old_is_refused() -> None:
    with pytest.raises(TransportError, match="too old"):
        NcclLibrary(FakeNccl(version=22602))


def test_chunks_go_through_one_after_the_other() -> None:
    nccl = FakeNccl()
    pair = _Pair(nccl, LONG)
    pair.open()
    for slot, value in ((0, 7), (1, 9)):
        pair.sender.slot(slot, 100).fill_(value)
        pair.receiver.begin_pull(slot, 100)
        pair.sender.push(slot, 100)
        pair.receiver.finish_pull(slot, 100)
        assert set(pair.receiver.slot(slot, 100).tolist()) == {value}
    assert pair.sender.ahead == pair.receiver.ahead == 1
    for plane in (pair.sender, pair.receiver):
        plane.close(clean=True)
    assert not nccl.alive()


def _opened(change: dict[str, Any], geometry: Geometry) -> tuple[FakeNccl, _Pair]:
    nccl = FakeNccl()
    pair = _Pair(nccl, geometry)
    pair.open()
    for name, value in change.items():
        setattr(nccl, name, value)
    return nccl, pair


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"stuck": True}, "no progress"), ({"async_error": REMOTE_ERROR}, "remote process exited")],
)
def test_a_peer_that_does_not_take_part_ends_the_call_and_the_communicator(
    change: dict[str, Any], reason: str
) -> None:
    nccl, pair = _opened(change, SHORT)
    with pytest.raises(TransportError, match=reason):
        pair.sender.push(0, 10)
    with pytest.raises(TransportError, match=reason):
        pair.receiver.begin_pull(0, 10)
        pair.receiver.finish_pull(0, 10)
    for plane in (pair.sender, pair.receiver):
        plane.close(clean=False)
    assert not nccl.alive()


def test_an_abort_from_another_thread_ends_a_call_that_waits() -> None:
    nccl, pair = _opened({"stuck": True}, LONG)
    failures: list[str] = []

    def push() -> None:
        try:
            pair.sender.push(0, 10)
        except TransportError as error:
            failures.append(str(error))

    waiting = threading.Thread(target=push)
    waiting.start()
    pair.sender.abort()
    waiting.join()
    assert failures == ["the connection was given up"]
    assert nccl.alive()  # the thread that uses a communicator is the one that aborts it
    pair.sender.close(clean=False)
    pair.receiver.close(clean=False)
    assert not nccl.alive()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda nccl: setattr(nccl, "init_polls", 10**9), "no progress"),
        (lambda nccl: setattr(nccl, "async_error", REMOTE_ERROR), "remote process exited"),
        (lambda nccl: setattr(nccl, "init_result", 2), "ncclCommInitRankConfig failed"),
    ],
)
def test_a_communicator_that_cannot_be_made_fails_the_transfer_with_the_reason(
    spoil: Callable[[FakeNccl], None], reason: str
) -> None:
    nccl = FakeNccl()
    spoil(nccl)
    settings = replace(QUICK, open_timeout_s=0.3)

    def planes(_transport: str) -> NcclPlanes:
        return NcclPlanes(NcclLibrary(nccl), FakeGpu(nccl))

    a, b = (Side("nccl", seed, settings=settings, planes=planes) for seed in (1, 2))
    b.receive("t", [1])
    a.send(b.address(), "t", [1])
    kind, why = a.wait("t")
    assert kind == "failed"
    assert reason in why or why in ("the peer hung up", "the connection was not made within 0.3 s")
    for side in (a, b):
        side.close()
    assert b.wait("t") == ("failed", "the transport was closed")


def test_an_error_in_mid_transfer_fails_both_sides_and_the_next_transfer_has_a_new_communicator() -> None:
    nccl = FakeNccl()

    def planes(_transport: str) -> NcclPlanes:
        return NcclPlanes(NcclLibrary(nccl), FakeGpu(nccl))

    a, b = (Side("nccl", seed, planes=planes) for seed in (1, 2))
    b.allow(2)
    b.receive("t", list(range(48)))
    a.send(b.address(), "t", list(range(48)))
    b.wait_passed(2)
    nccl.async_error = REMOTE_ERROR
    b.allow(None)
    assert a.wait("t")[0] == b.wait("t")[0] == "failed"
    for side in (a, b):
        side.settle()
    nccl.async_error = 0
    b.receive("u", list(range(48)))
    a.send(b.address(), "u", list(range(48)))
    assert a.wait("u")[0] == b.wait("u")[0] == "done"
    assert a.blocks() == b.blocks()
    assert nccl.calls.count("init") == 4
    for side in (a, b):
        side.close()
    assert not nccl.alive()
