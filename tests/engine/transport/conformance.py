"""What every transport must do, whatever carries the bytes. Two sides; where the second one lives varies."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.engine.transport.sides import NUM_BLOCKS, QUICK, WAIT_S

MakePair = Callable[..., tuple[Any, Any]]

# Blocks of the small caches are 1.5 KiB: two a chunk; 48 blocks make 24 chunks through 3 slots.
ALL = list(range(NUM_BLOCKS))


def moved(name: str, source: Any, target: Any, source_ids: list[int], target_ids: list[int]) -> None:
    target.receive(name, target_ids)
    source.send(target.address(), name, source_ids)
    assert source.wait(name) == ("done", "")
    assert target.wait(name) == ("done", "")


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def expect_moved(
    before: list[bytes], there: list[bytes], after: list[bytes], source_ids: list[int], target_ids: list[int]
) -> None:
    came_from = dict(zip(target_ids, source_ids, strict=True))
    expected = [there[came_from[b]] if b in came_from else before[b] for b in range(len(before))]
    wrong = [b for b in range(len(before)) if after[b] != expected[b]]
    assert not wrong


class TransfersBlocks:
    """Exact bytes."""

    @pytest.mark.parametrize("layout", ["separate", "LBNHC", "BLHNC", "padded"])
    def test_random_blocks_of_any_layout_arrive_exactly(self, make_pair: MakePair, layout: str) -> None:
        a, b = make_pair(layout=layout)
        chance = random.Random(layout)
        there = a.blocks()
        for n, count in enumerate([0, 1, 2, 7, NUM_BLOCKS]):
            source_ids, target_ids = chance.sample(ALL, count), chance.sample(ALL, count)
            before = b.blocks()
            moved(f"t{n}", a, b, source_ids, target_ids)
            expect_moved(before, there, b.blocks(), source_ids, target_ids)
        assert a.blocks() == there
        for side in (a, b):
            side.settle()

    def test_transfers_both_ways_at_once_do_not_mix(self, make_pair: MakePair) -> None:
        a, b = make_pair()
        before_a, before_b = a.blocks(), b.blocks()
        # Each side sends its lower half in three transfers and fills its upper half with the other's.
        for n in range(3):
            lower, upper = ALL[n * 8 : n * 8 + 8], ALL[24 + n * 8 : 32 + n * 8]
            for name, here, there in ((f"there {n}", a, b), (f"back {n}", b, a)):
                there.receive(name, upper)
                here.send(there.address(), name, lower)
        for n in range(3):
            for name in (f"there {n}", f"back {n}"):
                assert a.wait(name)[0] == b.wait(name)[0] == "done"
        assert a.blocks() == before_a[:24] + before_b[:24]
        assert b.blocks() == before_b[:24] + before_a[:24]
        for side in (a, b):
            side.settle()


class RefusesAndEnds:
    """One end for each transfer, with a reason, and nothing left."""

    def test_a_transfer_may_be_sent_before_it_is_expected(self, make_pair: MakePair) -> None:
        a, b = make_pair()
        before = b.blocks()
        a.send(b.address(), "soon", [1, 2])
        moved("between", a, b, [5], [6])  # the offer has come before it, and waits
        assert not a.has_ended("soon")
        b.receive("soon", [3, 4])
        assert a.wait("soon") == b.wait("soon") == ("done", "")
        expect_moved(before, a.blocks(), b.blocks(), [5, 1, 2], [6, 3, 4])
        a.send(b.address(), "never", [1])
        moved("then", a, b, [5], [6])
        a.cancel("never")
        assert a.wait("never")[0] == "cancelled"
        moved("never", a, b, [7], [8])  # the same id again: what was cancelled is not taken for it
        for side in (a, b):
            side.settle()

    def test_two_sides_that_disagree_on_the_number_of_blocks_both_fail(self, make_pair: MakePair) -> None:
        a, b = make_pair()
        before = b.blocks()
        b.receive("known", [3])
        a.send(b.address(), "known", [1, 2])
        assert a.wait("known") == ("failed", "2 blocks were offered, 1 are expected")
        assert b.wait("known") == ("failed", "2 blocks were offered, 1 are expected")
        assert b.blocks() == before
        for side in (a, b):
            side.settle()

    def test_a_transfer_can_be_cancelled_before_it_starts_and_after_it_ended(
        self, make_pair: MakePair
    ) -> None:
        a, b = make_pair()
        b.receive("early", [1])
        b.cancel("early")
        assert b.wait("early")[0] == "cancelled"
        a.send(b.address(), "early", [1])
        a.cancel("early")
        assert a.wait("early")[0] == "cancelled"
        moved("late", a, b, [1, 2], [3, 4])
        a.cancel("late")
        b.cancel("late")
        moved("next", a, b, [5], [6])  # what was to happen after the cancellations has happened
        assert a.num_further_ends() == b.num_further_ends() == 0
        for side in (a, b):
            side.settle()

    def test_a_call_returns_while_the_worker_is_busy_and_a_cancel_ends_it(self, make_pair: MakePair) -> None:
        a, b = make_pair()
        moved("first", a, b, [], [])  # the connection is there
        b.allow(0)
        for name in ("one", "two"):
            b.receive(name, ALL[:16] if name == "one" else ALL[16:])
            a.send(b.address(), name, ALL[:16] if name == "one" else ALL[16:])
        assert not a.has_ended("one")
        a.cancel("one")
        b.cancel("two")
        assert a.wait("one")[0] == "cancelled"
        assert b.wait("two")[0] == "cancelled"
        b.allow(None)
        assert b.wait("one") == ("failed", "the other side cancelled it")
        assert a.wait("two")[0] == "failed"
        for side in (a, b):
            side.settle()
        moved("after", a, b, ALL, ALL)
        assert a.blocks() == b.blocks()

    def test_closing_ends_what_is_under_way(self, make_pair: MakePair) -> None:
        a, b = make_pair()
        b.allow(1)
        b.receive("cut", ALL)
        b.receive("never", [])
        a.send(b.address(), "cut", ALL)
        b.wait_passed(1)
        a.close()
        assert a.wait("cut") == ("failed", "the transport was closed")
        assert b.wait("cut")[0] == "failed"
        b.close()
        assert b.wait("never") == ("failed", "the transport was closed")

    def test_staging_stays_within_its_bound(self, make_pair: MakePair) -> None:
        a, b = make_pair()
        for n in range(8):
            b.receive(f"t{n}", ALL[n * 6 : n * 6 + 6])
            a.send(b.address(), f"t{n}", ALL[n * 6 : n * 6 + 6])
        for n in range(8):
            assert a.wait(f"t{n}")[0] == b.wait(f"t{n}")[0] == "done"
        assert a.staging_bytes() == b.staging_bytes() == 3 * 4096
        assert a.num_connections() == b.num_connections() == 1


class NothingComesLate:
    """Blocks may be reused from the callback on."""

    def test_blocks_reused_at_the_moment_of_a_cancellation_stay_as_they_were_made(
        self, make_pair: MakePair, num_late_cases: int
    ) -> None:
        """Abort in mid-copy, then reuse: neighbours and the new content stay right."""
        # Where the receiver has not begun, the other side ends by its own time limit only.
        a, b = make_pair(settings=replace(QUICK, offer_timeout_s=2.0))
        chance = random.Random(5)
        for n in range(num_late_cases):
            name, count = f"t{n}", chance.randint(2, NUM_BLOCKS)
            source_ids, target_ids = chance.sample(ALL, count), chance.sample(ALL, count)
            there, before = a.blocks(), b.blocks()
            num_chunks = chance.randint(0, (count + 1) // 2)
            b.mark_passed()
            b.allow(num_chunks)
            b.receive(name, target_ids, 0xEE)
            a.send(b.address(), name, source_ids, 0xDD)
            b.wait_passed(num_chunks)
            (canceller, other) = (a, b) if chance.random() < 0.5 else (b, a)
            canceller.cancel(name)
            b.allow(None)
            ends = canceller.wait(name)[0], other.wait(name)[0]
            assert ends[0] in ("cancelled", "done")
            assert ends[1] in ("failed", "done")
            # A later transfer comes after all that was still in the pipe.
            spare = next(iter(block for block in ALL if block not in target_ids), None)
            if spare is not None:
                kept = next(block for block in ALL if block not in source_ids)
                moved(f"then {n}", a, b, [kept], [spare])
            for side in (a, b):
                side.settle()
            self._check(before, there, b.blocks(), source_ids, target_ids, spare, ends, canceller is b)

    def test_no_block_is_read_after_the_sender_was_told_of_the_end(self, make_pair: MakePair) -> None:
        a, b = make_pair()
        a.allow(0)  # the first chunk is read and cannot leave; the next two wait behind it
        b.receive("t", ALL)
        a.send(b.address(), "t", ALL)
        until(lambda: a.num_copies() == 1)
        a.cancel("t")
        assert a.wait("t")[0] == "cancelled"
        a.allow(None)
        assert b.wait("t")[0] == "failed"
        for side in (a, b):
            side.settle()
        assert a.num_copies() == 1

    def _check(
        self,
        before: list[bytes],
        there: list[bytes],
        after: list[bytes],
        source_ids: list[int],
        target_ids: list[int],
        spare: int | None,
        ends: tuple[str, str],
        receiver_cancelled: bool,
    ) -> None:
        received = ends[0] if receiver_cancelled else ends[1]
        poisoned = bytes([0xEE]) * len(before[0])
        came_from = dict(zip(target_ids, source_ids, strict=True))
        for block in ALL:
            if block in came_from:
                assert after[block] == (there[came_from[block]] if received == "done" else poisoned)
            elif block != spare:
                assert after[block] == before[block]
