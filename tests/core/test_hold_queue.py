"""Late binding: when an instance has room, who is placed first, what the scheduler is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llumnix.core.choice import Admission, Choice, Hold
from llumnix.core.dispatch import Dispatcher
from llumnix.core.events import DispatchEntry, HeldRequests
from llumnix.core.hold_queue import HeldRequest, HoldQueue

from .reports import report

HIGH, NORMAL = -10, 0


def placed(queue: HoldQueue, room: int, now: float = 0.0) -> list[str]:
    """The keys that are sent where there is room for that many tokens."""
    keys = []

    def send(request: HeldRequest) -> bool:
        nonlocal room
        if request.num_tokens > room:
            return False
        room -= request.num_tokens
        keys.append(request.key)
        return True

    queue.place(send, now)
    queue.check_integrity()
    return keys


def queue_of(*requests: tuple[str, int, int, float], overtake_s: float = 0.0) -> HoldQueue:
    queue = HoldQueue(overtake_s)
    for key, priority, num_tokens, arrived_at in requests:
        queue.push(key, priority, num_tokens, arrived_at)
    return queue


def test_class_then_age_decide_and_nobody_passes_the_first() -> None:
    queue = queue_of(("young", 0, 10, 3.0), ("old", 0, 30, 1.0), ("high", -10, 20, 4.0))
    assert placed(queue, room=45) == ["high"]
    assert placed(queue, room=25) == []
    assert placed(queue, room=40) == ["old", "young"]
    assert len(queue) == 0


def test_smaller_requests_may_pass_one_that_has_not_waited_long() -> None:
    queue = queue_of(("big", 0, 900, 1.0), ("small", 0, 10, 2.0), ("medium", 0, 50, 3.0), overtake_s=5.0)
    assert placed(queue, room=20, now=4.0) == ["small"]
    assert placed(queue, room=100, now=9.0) == []
    assert placed(queue, room=1000, now=9.0) == ["big", "medium"]


def test_resumed_requests_pass_others_only_where_no_instance_takes_those() -> None:
    queue = queue_of(("new", -10, 10, 1.0))
    for key, num_tokens in (("first", 10), ("second", 30), ("third", 10)):
        queue.push(key, 0, num_tokens, 2.0, is_resumed=True)
    sent: list[str] = []

    def send(request: HeldRequest) -> bool:
        if not request.is_resumed or request.num_tokens > 20:
            return False
        sent.append(request.key)
        return True

    queue.place(send, 0.0)
    assert sent == []
    queue.place(send, 0.0, only_resumed=True)
    assert sent == ["first"], "and nobody passes one of them that finds no room"
    queue.check_integrity()
    assert [request.key for request in queue] == ["new", "second", "third"]


def test_another_class_is_another_place_by_the_same_age() -> None:
    queue = queue_of(("a", 0, 1, 1.0), ("b", 0, 1, 2.0), ("c", 0, 1, 3.0))
    assert queue.set_priority("c", -10) and queue.set_priority("a", 5) and not queue.set_priority("x", 0)
    assert [request.key for request in queue] == ["c", "b", "a"]
    assert queue.discard("b") is not None and queue.discard("b") is None
    assert "a" in queue and "b" not in queue


def test_the_summary_is_of_the_whole_queue_and_of_its_head() -> None:
    queue = queue_of(("a", 0, 100, 1.0), ("b", -10, 30, 2.0))
    assert queue.summary(2) == HeldRequests(2, 2, 130, 30, -10)
    assert HoldQueue().summary(2) == HeldRequests(2, 0, 0, 0, 0)


keys = st.sampled_from("abcdefgh")


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), keys, st.sampled_from((HIGH, NORMAL)), st.integers(1, 50)),
            st.tuples(st.just("discard"), keys),
            st.tuples(st.just("priority"), keys, st.sampled_from((HIGH, NORMAL))),
            st.tuples(st.just("place"), st.integers(0, 100)),
        ),
        max_size=40,
    ),
    st.sampled_from((0.0, 10.0)),
)
def test_any_calls_keep_the_books_straight(calls: list[tuple], overtake_s: float) -> None:
    queue, model = HoldQueue(overtake_s), {}
    for now, (name, *arguments) in enumerate(calls):
        match name, arguments:
            case "push", [key, priority, num_tokens] if key not in model:
                queue.push(key, priority, num_tokens, now)
                model[key] = (priority, now, num_tokens)
            case "discard", [key]:
                assert (queue.discard(key) is not None) == (model.pop(key, None) is not None)
            case "priority", [key, priority]:
                assert queue.set_priority(key, priority) == (key in model)
                if key in model:
                    model[key] = (priority, *model[key][1:])
            case "place", [room]:
                sent = placed(queue, room, now)
                in_order = sorted(model, key=lambda key: model[key][:2])
                assert sent == [key for key in in_order if key in sent]
                if overtake_s == 0:
                    assert sent == in_order[: len(sent)]
                for key in sent:
                    del model[key]
        queue.check_integrity()
        assert [request.key for request in queue] == sorted(model, key=lambda key: model[key][:2])


# ---- when an instance has room ---------------------------------------------------------------------------


def dispatcher(num: int = 2, *, api_servers: int = 1) -> Dispatcher:
    made = Dispatcher(
        "backlog",
        headroom={},
        api_servers=api_servers,
        server_index=0,
        admission=Admission(reserve_blocks=2),
    )
    made.set_table(DispatchEntry(uid, f"i{uid}", True) for uid in range(1, num + 1))
    return made


def test_a_request_is_held_until_it_and_the_growth_of_all_have_room() -> None:
    made = dispatcher(1)
    made.observe(report(uid=1, running=3, used_blocks=60))
    assert isinstance(made.choose(16 * 32, 0), Choice), "40 free: 32 and 2 for each of 4"
    held = made.choose(16 * 33, 0)
    assert isinstance(held, Hold) and held.is_any_open and "no instance has room" in held.reason
    made.observe(report(uid=1, seq=2, running=3, used_blocks=60, backlog_blocks=10))
    assert isinstance(made.choose(16 * 32, 0), Hold), "a prompt under way needs more blocks"


def test_an_instance_in_which_requests_wait_or_no_slot_is_free_has_no_room() -> None:
    made = dispatcher(1)
    made.observe(report(uid=1, running=2, waiting=1, used_blocks=10, queued_blocks=1, head_blocks=1))
    assert isinstance(made.choose(16, 0), Hold)
    made.observe(report(uid=1, seq=2, running=8, used_blocks=10))
    assert isinstance(made.choose(16, 0), Hold)


def test_an_empty_instance_takes_the_largest_request() -> None:
    made = dispatcher(1)
    made.observe(report(uid=1))
    assert isinstance(made.choose(16 * 100, 0), Choice)
    made.sent(1, 16 * 100, 0)
    assert isinstance(made.choose(16, 0), Hold)


def test_several_api_servers_share_the_room() -> None:
    alone, one_of_two = dispatcher(1), dispatcher(1, api_servers=2)
    for made in (alone, one_of_two):
        made.observe(report(uid=1, running=1, used_blocks=40))
        assert isinstance(made.choose(160, 0), Choice)
        made.sent(1, 160, 0)
        made.sent(1, 160, 0)
    assert isinstance(alone.choose(160, 0), Choice)
    assert isinstance(one_of_two.choose(160, 0), Hold), "the other one is taken to have sent as much"


def test_the_freest_of_those_with_room_is_chosen() -> None:
    made = dispatcher(3)
    made.observe(report(uid=1, running=1, used_blocks=30))
    made.observe(report(uid=2, running=1, used_blocks=20, waiting=1, queued_blocks=5, head_blocks=5))
    made.observe(report(uid=3, running=1, used_blocks=40))
    choice = made.choose(160, 0)
    assert isinstance(choice, Choice) and choice.uid == 1
