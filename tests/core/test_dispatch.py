"""The dispatcher: rules, what was sent since the last report, ties, paused and unknown instances."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.core.choice import Choice, Hold
from llumnix.core.dispatch import RULES, Dispatcher
from llumnix.core.events import DispatchEntry
from llumnix.core.load import (
    ClassLoad,
    Headroom,
    InstanceReport,
    freeness,
    headroom_in_blocks,
    queued_load_freeness,
)
from llumnix.core.policies import POLICIES

from .reports import PRIORITIES, report, reports

HEADROOM = {-10: Headroom(160), 0: Headroom()}


def dispatcher(rule: str, num: int = 3, *, api_servers: int = 1, server_index: int = 0) -> Dispatcher:
    """A dispatcher that knows the open instances 1..num and has no report yet."""
    made = Dispatcher(rule, headroom=HEADROOM, api_servers=api_servers, server_index=server_index)
    made.set_table(entries(num))
    return made


def entries(num: int, closed: Collection[int] = ()) -> list[DispatchEntry]:
    return [DispatchEntry(uid, f"i{uid}", uid not in closed) for uid in range(1, num + 1)]


def backlog_freeness(instance: InstanceReport) -> float:
    """What rule `backlog` scores for a request without headroom: queue and prompts under way count."""
    high = instance.classes.get(-10)
    kept_blocks = -(-160 // instance.block_size) if high is not None and high.running else 0
    taken_blocks = instance.used_blocks + instance.queued_blocks + instance.backlog_blocks + kept_blocks
    free_blocks = instance.total_blocks - taken_blocks
    return free_blocks if free_blocks < 0 else free_blocks / max(instance.running, 1)


def pick(made: Dispatcher, priority: int = 0, *, exclude: Collection[int] = ()) -> Choice:
    choice = made.choose(160, priority, exclude=exclude)
    assert isinstance(choice, Choice)
    return choice


def send(made: Dispatcher, count: int = 1) -> list[int]:
    chosen = []
    for _ in range(count):
        chosen.append(pick(made).uid)
        made.sent(chosen[-1], 160, 0)
    return chosen


# ---- rules ----------------------------------------------------------------------------------------------


def test_every_policy_of_the_configuration_has_a_rule() -> None:
    assert set(POLICIES) == {"llumnix+", "llumnix", "load", "least_requests", "round_robin"}
    assert {policy.dispatch_rule for policy in POLICIES.values()} == set(RULES)


@given(reports())
def test_without_sends_the_score_is_the_one_of_the_report(instance: InstanceReport) -> None:
    expected = {
        "freeness": freeness(
            instance, headroom_in_blocks(HEADROOM, instance.block_size, instance.total_blocks)
        ),
        "backlog": backlog_freeness(instance),
        "load": queued_load_freeness(instance),
        "least_requests": -(4 * instance.waiting + instance.running),
        "round_robin": 0,
    }
    for rule, score in expected.items():
        made = dispatcher(rule, 1)
        made.observe(instance)
        assert pick(made).score == score


def test_dispatch_section_4_4_goes_to_the_highest_freeness() -> None:
    made = dispatcher("freeness")
    made.observe(report(uid=1, running=2, used_blocks=20))
    made.observe(report(uid=2, running=4, used_blocks=20))
    made.observe(report(uid=3, running=2, used_blocks=10, waiting=1, queued_blocks=40, head_blocks=40))
    choice = pick(made)
    assert (choice.uid, choice.score) == (1, 40)
    assert choice.reason == (
        "freeness 40.00 is the best of 3 instances: "
        "i1 has 2 running, 0 waiting, 20/100 blocks used, 0 sent since"
    )


def test_rules_disagree_about_a_deep_queue_as_they_should() -> None:
    deep = report(uid=1, running=2, used_blocks=20, waiting=9, queued_blocks=90, head_blocks=10)
    flat = report(uid=2, running=2, used_blocks=40)
    chosen = {}
    for rule in ("freeness", "load", "least_requests"):
        made = dispatcher(rule, 2)
        made.observe(deep)
        made.observe(flat)
        chosen[rule] = pick(made).uid
    assert chosen == {"freeness": 1, "load": 2, "least_requests": 2}


def test_least_requests_weighs_a_waiting_request_four_times() -> None:
    made = dispatcher("least_requests", 2)
    made.observe(report(uid=1, running=0, waiting=1, queued_blocks=1, head_blocks=1))
    made.observe(report(uid=2, running=3))
    assert pick(made).uid == 2
    made.observe(report(uid=2, seq=2, running=5))
    assert pick(made).uid == 1


def test_round_robin_takes_turns_and_a_newcomer_is_not_flooded() -> None:
    made = dispatcher("round_robin", 2)
    assert sorted(send(made, 20)) == [1] * 10 + [2] * 10
    made.set_table(entries(3))
    assert sorted(send(made, 6)) == [1, 1, 2, 2, 3, 3]


def test_round_robin_does_not_make_up_for_the_time_an_instance_was_closed() -> None:
    made = dispatcher("round_robin", 2)
    made.set_table(entries(2, closed={2}))
    assert set(send(made, 10)) == {1}
    made.set_table(entries(2))
    assert sorted(send(made, 4)) == [1, 1, 2, 2]


@pytest.mark.parametrize("rule", RULES)
@given(
    instance=reports(),
    wanted=st.sampled_from(PRIORITIES),
    sends=st.lists(st.tuples(st.integers(1, 9000), st.sampled_from(PRIORITIES)), max_size=12),
    api_servers=st.integers(1, 4),
)
def test_a_score_never_rises_by_sending_there(
    rule: str, instance: InstanceReport, wanted: int, sends: list[tuple[int, int]], api_servers: int
) -> None:
    made = dispatcher(rule, 1, api_servers=api_servers)
    made.observe(instance)
    score = pick(made, wanted).score
    for tokens, priority in sends:
        made.sent(1, tokens, priority)
        made.check_integrity()
        assert pick(made, wanted).score <= score
        score = pick(made, wanted).score


# ---- backlog: headroom ----------------------------------------------------------------------------------


def with_high(uid: int, *, high_blocks: int, normal_blocks: int, num_normal: int) -> InstanceReport:
    """One request of the class with 10 blocks of headroom, and others."""
    classes = {-10: ClassLoad(1, 0, high_blocks), 0: ClassLoad(num_normal, 0, normal_blocks)}
    used_blocks = high_blocks + normal_blocks
    return report(uid=uid, running=1 + num_normal, used_blocks=used_blocks, classes=classes)


def test_backlog_keeps_headroom_free_of_others() -> None:
    made = dispatcher("backlog", 2)
    made.observe(with_high(1, high_blocks=5, normal_blocks=5, num_normal=9))
    made.observe(report(uid=2, running=10, used_blocks=15))
    assert (pick(made).uid, pick(made).score) == (2, 8.5)
    made.observe(report(uid=2, seq=2, running=10, used_blocks=21))
    assert (pick(made).uid, pick(made).score) == (1, (100 - 10 - 10) / 10)


def test_backlog_keeps_a_class_together_while_it_leaves_its_headroom_free() -> None:
    made = dispatcher("backlog", 2)
    made.observe(with_high(1, high_blocks=20, normal_blocks=40, num_normal=9))
    made.observe(report(uid=2, running=2, used_blocks=40))
    assert (pick(made).uid, pick(made, -10).uid, pick(made, -10).score) == (2, 1, 40)
    made.observe(replace(with_high(1, high_blocks=90, normal_blocks=0, num_normal=0), seq=2))
    assert pick(made, -10).uid == 2


def test_backlog_does_not_share_a_deficit_among_the_batch() -> None:
    made = dispatcher("backlog", 2)
    made.observe(report(uid=1, running=20, used_blocks=100, waiting=1, queued_blocks=40, head_blocks=40))
    made.observe(report(uid=2, running=2, used_blocks=100, waiting=1, queued_blocks=20, head_blocks=20))
    assert (pick(made).uid, pick(made).score) == (2, -20)


# ---- the view: the latest report plus what was sent since ------------------------------------------------


def test_requests_sent_since_the_report_count_until_a_report_covers_them() -> None:
    made = dispatcher("freeness", 2)
    for uid in (1, 2):
        made.observe(report(uid=uid))
    assert sorted(send(made, 4)) == [1, 1, 2, 2]
    made.observe(report(uid=1, seq=2, running=1, used_blocks=10, taken={0: 1}))
    first = pick(made, exclude={2})
    assert (first.num_unseen, first.score) == (1, (100 - 10 - 10) / 2)
    made.observe(report(uid=1, seq=3, taken={0: 2}))
    assert (pick(made).uid, pick(made).score) == (1, 100)


def test_others_are_assumed_to_send_alike() -> None:
    made = dispatcher("freeness", 1, api_servers=3, server_index=1)
    made.observe(report(uid=1, running=1, used_blocks=10))
    made.sent(1, 160, 0)
    assert pick(made).score == (100 - 10 - 3 * 10) / (1 + 3)


def test_a_server_goes_by_its_own_count_in_the_reports() -> None:
    made = dispatcher("freeness", 1, api_servers=3, server_index=1)
    for _ in range(3):
        made.sent(1, 160, 0)
    made.observe(report(uid=1, seq=1, taken={0: 3, 2: 9}))
    assert pick(made).num_unseen == 3
    made.observe(report(uid=1, seq=2, taken={0: 0, 1: 2}))
    assert pick(made).num_unseen == 1


def test_headroom_is_counted_at_once_for_a_class_that_was_just_sent() -> None:
    made = dispatcher("freeness", 1)
    made.observe(report(uid=1, running=1, used_blocks=10))
    made.sent(1, 16, -10)
    assert pick(made).score == (100 - 10 - 1 - 10) / 2
    made.sent(1, 16, -10)
    assert pick(made).score == (100 - 10 - 2 - 10) / 3


def test_what_is_sent_to_a_queue_takes_blocks_but_joins_no_batch() -> None:
    made = dispatcher("freeness", 1)
    made.observe(report(uid=1, running=4, used_blocks=40, waiting=1, queued_blocks=20, head_blocks=20))
    made.sent(1, 160, -10)
    assert pick(made).score == (100 - 60 - 10) / 4


@pytest.mark.parametrize("stale_seq", [4, 5])
def test_a_stale_report_changes_nothing(stale_seq: int) -> None:
    made = dispatcher("freeness", 1)
    made.observe(report(uid=1, seq=5, running=2, used_blocks=50))
    made.observe(report(uid=1, seq=stale_seq))
    made.observe(report(uid=99))
    assert pick(made).score == 25


def test_after_a_new_connection_counting_starts_at_zero() -> None:
    made = dispatcher("freeness", 1)
    made.observe(report(uid=1, seq=1))
    send(made, 3)
    made.observe(report(uid=1, seq=2, taken={0: 3}))
    made.reset_sent(1)
    send(made, 2)
    assert pick(made).num_unseen == 2
    made.observe(report(uid=1, seq=3, taken={0: 1}))
    assert pick(made).num_unseen == 1


def test_a_count_of_a_former_connection_covers_nothing_that_is_sent_later() -> None:
    made = dispatcher("freeness", 1)
    made.reset_sent(1)
    made.observe(report(uid=1, seq=1, taken={0: 500}))
    send(made, 2)
    made.observe(report(uid=1, seq=2, taken={0: 0}))
    assert pick(made).num_unseen == 2


def test_queued_counts_what_waits_and_what_was_sent_beyond_the_room() -> None:
    made = dispatcher("freeness", 2)
    assert made.queued() == 0
    made.observe(report(uid=1, running=6, used_blocks=60))
    made.observe(report(uid=2, running=2, waiting=3, queued_blocks=30, head_blocks=10))
    assert made.queued() == 3
    for _ in range(2):
        made.sent(1, 16, 0)
    assert made.queued() == 3  # two slots were left
    made.sent(1, 16, 0)
    made.sent(2, 16, 0)
    assert made.queued() == 5
    made.remove(2)
    assert made.queued() == 1
    made.observe(report(uid=1, seq=2, running=8, waiting=1, queued_blocks=1, head_blocks=1, taken={0: 3}))
    assert made.queued() == 1


def test_queued_counts_requests_that_find_no_blocks() -> None:
    made = dispatcher("freeness", 1)
    made.observe(report(uid=1, used_blocks=80, running=1))
    for _ in range(4):
        made.sent(1, 160, 0)
    assert made.queued() == 2


# ---- who is a candidate ----------------------------------------------------------------------------------


def test_no_open_instance_is_a_hold_with_its_reason() -> None:
    made = dispatcher("freeness", 2)
    made.set_table(entries(2, closed={2}))
    held = made.choose(160, 0, exclude={1})
    assert held == Hold(
        "no open instance for a request of 160 tokens and priority 0: 2 known, 1 open, 1 excluded",
        is_any_open=False,
    )
    made.set_table([])
    assert isinstance(made.choose(160, 0), Hold)


def test_what_has_lost_its_instance_goes_to_a_refuge_while_none_is_open_and_nothing_else_does() -> None:
    made = dispatcher("freeness", 3)
    refuge, closed = DispatchEntry(2, "i2", False, refuge=True), DispatchEntry(3, "i3", False)
    made.set_table([DispatchEntry(1, "i1", True), refuge, closed])
    made.observe(report(uid=1, running=8, used_blocks=100))
    resumed = made.choose(160, 0, resumed=True)
    assert isinstance(resumed, Choice) and resumed.uid == 1, "an open one is there, however full"
    made.observe(report(uid=1, seq=2, paused=True))
    resumed = made.choose(160, 0, resumed=True)
    assert isinstance(resumed, Choice) and resumed.uid == 1, "it will go on some time"
    unreachable = made.choose(160, 0, exclude={1}, resumed=True)
    assert isinstance(unreachable, Choice) and unreachable.uid == 2

    made.remove(1)
    resumed = made.choose(160, 0, resumed=True)
    assert isinstance(resumed, Choice) and resumed.uid == 2 and resumed.reason
    refused = made.choose(160, 0)
    assert isinstance(refused, Hold) and "no open instance" in refused.reason
    assert (refused.is_any_open, refused.is_any_refuge) == (False, True)
    made.set_table([closed])
    nowhere = made.choose(160, 0, resumed=True)
    assert isinstance(nowhere, Hold) and not nowhere.is_any_refuge
    made.check_integrity()


def test_paused_instances_are_chosen_only_when_all_are_paused() -> None:
    made = dispatcher("freeness", 2)
    made.observe(report(uid=1, paused=True))
    made.observe(report(uid=2, running=8, used_blocks=100))
    assert pick(made).uid == 2
    assert pick(made, exclude={2}).uid == 1
    made.observe(report(uid=2, seq=2, paused=True, running=8, used_blocks=100))
    assert pick(made).uid == 1
    made.observe(report(uid=2, seq=3, running=8, used_blocks=100))
    assert pick(made).uid == 2


def test_an_instance_without_a_report_is_taken_as_idle_and_not_flooded() -> None:
    made = dispatcher("freeness", 2)
    made.observe(report(uid=1, running=4, used_blocks=40))
    made.observe(report(uid=2, running=4, used_blocks=40))
    made.set_table(entries(3))
    newcomer = pick(made)
    assert (newcomer.uid, newcomer.score, newcomer.report) == (3, 100, None)
    assert "i3 has not reported yet" in newcomer.reason
    assert 1 in send(made, 12) and 2 in send(made, 12)


def test_the_dead_are_not_brought_back_by_a_late_table() -> None:
    made = dispatcher("freeness", 2)
    made.remove(1)
    made.set_table(entries(3))
    assert set(send(made, 6)) == {2, 3}
    made.check_integrity()


def test_ties_go_round_from_a_start_of_each_server() -> None:
    firsts = [pick(dispatcher("freeness", 4, api_servers=4, server_index=i)).uid for i in range(4)]
    assert firsts == [1, 2, 3, 4]
    made = dispatcher("freeness", 4)
    assert [pick(made).uid for _ in range(6)] == [1, 2, 3, 4, 1, 2]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="unknown dispatch rule 'best'; known are freeness"):
        Dispatcher("best", headroom={}, api_servers=1, server_index=0)
    with pytest.raises(ValueError, match="server_index 2 is not one of 2"):
        Dispatcher("load", headroom={}, api_servers=2, server_index=2)


# ---- any sequence of calls -------------------------------------------------------------------------------

uids = st.integers(1, 4)
steps = st.one_of(
    st.tuples(st.just("table"), st.sets(uids), st.sets(uids), st.sets(uids)),
    st.tuples(st.just("observe"), uids, reports(), st.integers(0, 30)),
    st.tuples(st.just("send"), st.integers(1, 4000), st.sampled_from(PRIORITIES), st.booleans()),
    st.tuples(st.just("remove"), uids),
    st.tuples(st.just("reset"), uids),
)


@given(st.sampled_from(sorted(RULES)), st.integers(1, 3), st.lists(steps, max_size=40))
def test_any_calls_keep_the_books_straight(rule: str, api_servers: int, calls: list[tuple]) -> None:
    made = Dispatcher(rule, headroom=HEADROOM, api_servers=api_servers, server_index=api_servers - 1)
    open_uids: set[int] = set()
    refuges: set[int] = set()
    dead: set[int] = set()
    for name, *arguments in calls:
        match name, arguments:
            case "table", [present, closed, cordoned]:
                dead &= present
                open_uids = present - closed - dead
                refuges = (present & closed & cordoned) - dead
                made.set_table(
                    DispatchEntry(uid, f"i{uid}", uid not in closed, uid in closed & cordoned)
                    for uid in sorted(present)
                )
            case "observe", [uid, instance, taken]:
                made.observe(replace(instance, uid=uid, taken={api_servers - 1: taken}))
            case "send", [tokens, priority, resumed]:
                choice = made.choose(tokens, priority, resumed=resumed)
                able = open_uids or (refuges if resumed else set())
                assert isinstance(choice, Choice) == bool(able)
                if isinstance(choice, Choice):
                    assert choice.uid in able and choice.reason
                    made.sent(choice.uid, tokens, priority)
            case "remove", [uid]:
                made.remove(uid)
                dead.add(uid)
                open_uids.discard(uid)
                refuges.discard(uid)
            case "reset", [uid]:
                made.reset_sent(uid)
        made.check_integrity()
        assert made.queued() >= 0
