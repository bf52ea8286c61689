"""Which request the llumlet moves next: the paper's order, its end, and what llumnix+ asks besides."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from llumnix.core.load import ClassLoad, InstanceReport
from llumnix.core.victims import Candidate, MoveGoal, Queued, Sent, next_victim

from .reports import report

HIGH, NORMAL, LOW = -10, 0, 5
EVERYTHING = MoveGoal(queued=Queued.GO_TOO)


def request(name: str, blocks: int, priority: int = NORMAL, *, waits: bool = False) -> Candidate:
    return Candidate(name, priority, 16 * blocks, blocks, is_running=not waits)


def chosen(
    candidates: list[Candidate], load: InstanceReport, goal: MoveGoal, sent: Sent | None = None
) -> str | None:
    victim = next_victim(candidates, load, goal, sent or Sent())
    return None if victim is None else victim.request_id


FULL = report(running=3, used_blocks=97)


def test_victims_section_4_4_lower_priority_first_then_shorter() -> None:
    candidates = [
        request("short high", 1, HIGH),
        request("long", 40),
        request("middle", 20),
        request("long low", 30, LOW),
    ]
    order = []
    while candidates:
        victim = next_victim(candidates, FULL, EVERYTHING, Sent())
        assert victim is not None
        order.append(victim.request_id)
        candidates.remove(victim)
    assert order == ["long low", "middle", "long", "short high"]


def test_victims_section_4_4_until_the_instance_is_no_source_any_more() -> None:
    goal = MoveGoal(until_freeness=3)
    assert chosen([request("a", 10)], FULL, goal) == "a"
    leaving = report(running=3, used_blocks=97, leaving=1, leaving_blocks=10)
    assert chosen([request("a", 10)], leaving, goal) is None, "what has begun to leave counts as gone"


def test_nobody_leaves_for_the_sake_of_his_own_classs_headroom() -> None:
    goal = MoveGoal(until_freeness=3, headroom_blocks={HIGH: 90})
    classes = {HIGH: ClassLoad(1, 0, 10), NORMAL: ClassLoad(1, 0, 10)}
    roomy = report(running=2, used_blocks=20, classes=classes)
    candidates = [request("high", 10, HIGH), request("normal", 10)]
    assert chosen(candidates, roomy, goal) == "normal"
    alone = report(running=1, used_blocks=10, classes={HIGH: ClassLoad(1, 0, 10)})
    assert chosen(candidates[:1], alone, goal) is None
    crowded = report(running=2, used_blocks=99, classes={HIGH: ClassLoad(2, 0, 99)})
    assert chosen(candidates[:1], crowded, goal) == "high", "blocks that are really short are another matter"


def test_a_more_important_one_does_not_leave_because_the_others_do_not_fit() -> None:
    goal = MoveGoal(until_freeness=3, target_room_blocks=20, target_freeness=0)
    candidates = [request("high", 10, HIGH), request("normal", 30)]
    assert chosen(candidates, FULL, goal) is None
    assert chosen(candidates[:1], FULL, goal) == "high"
    leave_all = MoveGoal(target_room_blocks=20, target_freeness=0)
    assert chosen(candidates, FULL, leave_all) == "high", "where all have to go, nobody is held up"


def test_what_waits_stays_goes_too_or_goes_alone() -> None:
    candidates = [request("runs", 10), request("waits", 5, waits=True)]
    assert chosen(candidates, FULL, MoveGoal(queued=Queued.STAY)) == "runs"
    assert chosen(candidates, FULL, MoveGoal(queued=Queued.GO_TOO)) == "waits"
    queue = [
        request("next", 9, waits=True),
        request("after it", 2, waits=True),
        request("low", 1, LOW, waits=True),
    ]
    alone = MoveGoal(queued=Queued.GO_ALONE)
    assert chosen([request("runs", 1), *queue], FULL, alone) == "next", "it is for them: in queue order"


def test_the_targets_room_shrinks_by_what_was_sent() -> None:
    goal = MoveGoal(target_room_blocks=30, target_running=2, target_freeness=3)
    candidates = [request("a", 10), request("b", 15)]
    assert chosen(candidates, FULL, goal) == "a"
    assert chosen(candidates, FULL, goal, Sent(1, 10)) is None, "(30 - 20) / 4 is less than 3"
    assert chosen([request("c", 6)], FULL, goal, Sent(1, 10)) == "c"


def test_room_is_made_with_the_smallest_request_that_suffices_else_with_the_largest() -> None:
    goal = MoveGoal(until_freeness=-math.inf, until_free_blocks=20)
    candidates = [request("too small", 16), request("just enough", 17), request("large", 60)]
    assert chosen(candidates, FULL, goal) == "just enough"
    assert chosen([request("small", 3), request("larger", 9)], FULL, goal) == "larger"
    assert chosen(candidates, report(running=3, used_blocks=80), goal) is None


def test_a_move_that_would_come_too_late_is_not_begun() -> None:
    goal = MoveGoal(until_freeness=3, must_pay=True)
    # 3 free blocks of 16 tokens for 3 requests: 16 steps of 50 ms.
    load = report(running=3, used_blocks=97, step_ms=50, copy_blocks_per_s=20)
    assert chosen([request("0.9 s", 18)], load, goal) is None
    assert chosen([request("0.9 s", 18), request("0.7 s", 14)], load, goal) == "0.7 s"
    unknown = report(running=3, used_blocks=97, step_ms=50)
    assert chosen([request("0.9 s", 18)], unknown, goal) == "0.9 s", "no copy has been timed yet"


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from((HIGH, NORMAL, LOW)), st.booleans()), max_size=9),
    st.floats(0, 50),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_the_victim_is_one_of_the_least_important_and_fits(
    requests: list[tuple[int, int, bool]], until_freeness: float, until_free_blocks: int, room: int
) -> None:
    candidates = [
        request(str(n), blocks, priority, waits=waits) for n, (blocks, priority, waits) in enumerate(requests)
    ]
    goal = MoveGoal(until_freeness, until_free_blocks, target_room_blocks=room, target_freeness=0)
    victim = next_victim(candidates, FULL, goal, Sent())
    running = [c for c in candidates if c.is_running]
    least = max((c.priority for c in running), default=0)
    fitting = [c for c in running if c.priority == least and c.num_blocks <= room]
    is_reached = until_freeness <= 1 and until_free_blocks <= 3
    assert (victim is None) == (is_reached or not fitting)
    if victim is not None:
        assert victim in fitting
