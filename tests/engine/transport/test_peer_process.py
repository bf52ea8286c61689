"""Transports between processes: the suite once more, and peers that die, hang and come back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llumnix.engine.transport import TransportSettings
from tests.engine.transport.conformance import ALL, MakePair, NothingComesLate, moved
from tests.engine.transport.peers import PeerSide
from tests.engine.transport.sides import QUICK, WAIT_S, Side

# Only a closed connection can end a transfer within the wait, or only silence can.
PATIENT = replace(QUICK, peer_timeout_s=10 * WAIT_S)
IMPATIENT = replace(QUICK, peer_timeout_s=1.5, ping_interval_s=0.1)


class _Processes:
    """Sides here and elsewhere that are ended with the test."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self._here: list[Side] = []
        self._elsewhere: list[PeerSide] = []

    def here(self, settings: TransportSettings = QUICK) -> Side:
        self._here.append(Side(self.transport, 1, settings=settings))
        return self._here[-1]

    def elsewhere(self, settings: TransportSettings = QUICK) -> PeerSide:
        self._elsewhere.append(PeerSide(transport=self.transport, seed=2, settings=settings))
        return self._elsewhere[-1]

    def end(self) -> None:
        for peer in self._elsewhere:
            peer.end()
        for side in self._here:
            side.close()


@pytest.fixture(params=["shm", "gloo"])
def processes(request: pytest.FixtureRequest) -> Iterator[_Processes]:
    made = _Processes(request.param)
    yield made
    made.end()


@pytest.fixture
def make_pair(processes: _Processes) -> MakePair:
    def make(**_arguments: Any) -> tuple[Any, Any]:
        return processes.here(), processes.elsewhere()

    return make


@pytest.fixture
def num_late_cases() -> int:
    return 10


class TestLateWritesOfAnotherProcess(NothingComesLate):
    pass


def begin(name: str, source: Any, target: Any, gated: Any) -> None:
    """A transfer that has copied some chunks and cannot finish."""
    gated.allow(3)
    target.receive(name, ALL)
    source.send(target.address(), name, ALL)
    gated.wait_passed(3)


@pytest.mark.parametrize("receives", [True, False])
def test_a_peer_that_is_killed_in_mid_transfer_is_noticed_and_replaced(
    processes: _Processes, receives: bool
) -> None:
    here, peer = processes.here(PATIENT), processes.elsewhere(PATIENT)
    source, target = (here, peer) if receives else (peer, here)
    begin("cut", source, target, peer)
    peer.kill()
    assert here.wait("cut")[0] == "failed"
    here.settle()
    successor = processes.elsewhere(PATIENT)
    source, target = (here, successor) if receives else (successor, here)
    moved("again", source, target, ALL, ALL)
    assert here.blocks() == successor.blocks()


@pytest.mark.parametrize("receives", [True, False])
def test_a_peer_that_hangs_is_given_up_and_no_call_waits_for_it(
    processes: _Processes, receives: bool
) -> None:
    here, peer = processes.here(IMPATIENT), processes.elsewhere(PATIENT)
    source, target = (here, peer) if receives else (peer, here)
    address = peer.address()
    begin("cut", source, target, peer)
    peer.stop()
    here.send(address, "into the void", [0])
    assert not here.has_ended("into the void")
    assert here.wait("cut")[0] == "failed"  # by its silence, or by bytes that did not come
    assert here.wait("into the void") == ("failed", "the peer has been silent for 1.5 s")
    before = here.blocks()
    peer.resume()
    assert peer.wait("cut")[0] == "failed"
    peer.allow(None)
    moved("again", source, target, ALL[:24], ALL[24:])
    # What the revived peer still had of the old transfer came nowhere.
    assert here.blocks()[:24] == before[:24]
    assert target.blocks()[24:] == source.blocks()[:24]


def test_a_peer_that_hangs_disturbs_no_transfer_with_another(processes: _Processes) -> None:
    here, hung, well = processes.here(PATIENT), processes.elsewhere(PATIENT), processes.elsewhere(PATIENT)
    begin("stuck", here, hung, hung)
    hung.stop()
    moved("fine", here, well, ALL, ALL)
    assert not here.has_ended("stuck")
    hung.kill()
    assert here.wait("stuck")[0] == "failed"


def test_the_default_time_limits_notice_a_hanging_peer_within_two_seconds() -> None:
    defaults = TransportSettings()
    assert defaults.peer_timeout_s + defaults.ping_interval_s < 2
    assert defaults.ping_interval_s * 3 < defaults.peer_timeout_s


def test_nothing_is_left_of_many_pairs_that_came_and_went(processes: _Processes) -> None:
    here = processes.here()
    _round_of_pairs(processes, here)  # what is made once, such as torch's own threads, is there now
    before = _once_settled(here)
    for _ in range(3):
        _round_of_pairs(processes, here)
    assert _once_settled(here) == before
    assert not list(Path("/dev/shm").glob("*llumnix*"))


def _round_of_pairs(processes: _Processes, here: Side) -> None:
    others = [Side(processes.transport, seed) for seed in range(4)]
    for n, other in enumerate(others):
        moved(f"to {n}", here, other, [n], [n])
        moved(f"from {n}", other, here, [n], [n])
        moved(f"between {n}", other, others[n - 1], [n], [n])
    for other in others:
        other.close()


def _once_settled(here: Side) -> tuple[int, int]:
    """Threads and descriptors of this process, when the connections to closed peers have ended."""
    deadline = time.monotonic() + WAIT_S
    while here.num_connections() and time.monotonic() < deadline:
        time.sleep(0.01)
    counts = _counts()
    while (later := _counts()) != counts and time.monotonic() < deadline:
        counts = later
        time.sleep(0.05)
    return counts


def _counts() -> tuple[int, int]:
    threads, descriptors = (len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("task", "fd"))
    return threads, descriptors
