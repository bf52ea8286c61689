"""Virtual usage and freeness, against the rows of the paper's Algorithm 1 (section 4.4)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.core.load import (
    ClassLoad,
    Headroom,
    InstanceReport,
    demand_blocks,
    freeness,
    freeness_after_moves,
    headroom_in_blocks,
    queued_load_freeness,
    virtual_blocks,
)

from .reports import PRIORITIES, report, reports

headrooms = st.dictionaries(st.sampled_from(PRIORITIES), st.integers(0, 500))


def algorithm1(instance: InstanceReport, headroom: dict[int, int]) -> float:
    """The sum request by request, as the paper writes it; a class's blocks are shared out evenly."""
    total = 0.0
    for priority, part in instance.classes.items():
        for _ in range(part.running):
            total += part.used_blocks / part.running + headroom.get(priority, 0) / part.running
    for position in range(instance.waiting):
        total += instance.head_blocks if position == 0 else 0
    return total


@given(reports(), headrooms)
def test_algorithm1_section_4_4_the_sum_over_classes_equals_the_sum_over_requests(
    instance: InstanceReport, headroom: dict[int, int]
) -> None:
    assert virtual_blocks(instance, headroom) == pytest.approx(algorithm1(instance, headroom))


def test_algorithm1_section_4_4_only_the_head_of_line_counts_of_the_queue() -> None:
    queue = report(running=4, used_blocks=60, waiting=3, queued_blocks=90, head_blocks=20)
    assert virtual_blocks(queue, {}) == 60 + 20


def test_algorithm1_section_4_4_a_running_request_has_its_physical_usage_and_its_share_of_headroom() -> None:
    classes = {-10: ClassLoad(2, 0, 10), 0: ClassLoad(3, 0, 30)}
    both = report(running=5, used_blocks=40, classes=classes)
    assert virtual_blocks(both, {-10: 25, 0: 0}) == 40 + 25
    assert freeness(both, {-10: 25, 0: 0}) == (100 - 65) / 5


def test_headroom_is_kept_for_no_class_that_only_waits() -> None:
    classes = {-10: ClassLoad(0, 1, 0), 0: ClassLoad(1, 0, 10)}
    waits = report(running=1, waiting=1, used_blocks=10, queued_blocks=5, head_blocks=5, classes=classes)
    assert virtual_blocks(waits, {-10: 50}) == 15


def test_algorithm1_section_4_4_the_fake_request_of_a_draining_instance_is_infinite() -> None:
    assert virtual_blocks(report(), {}, draining=True) == math.inf
    assert freeness(report(), {}, draining=True) == -math.inf


def test_algorithm1_section_4_4_freeness_is_blocks_per_running_request_and_may_be_negative() -> None:
    assert freeness(report(running=4, used_blocks=60), {}) == 10
    assert freeness(report(running=4, used_blocks=90, waiting=1, queued_blocks=50, head_blocks=50), {}) == -10


def test_freeness_of_an_empty_instance_is_its_size() -> None:
    assert freeness(report(), {0: 0}) == 100


@given(reports(), headrooms, st.integers(1, 100))
def test_freeness_falls_when_blocks_are_taken_or_headroom_grows(
    instance: InstanceReport, headroom: dict[int, int], more: int
) -> None:
    fuller = replace(instance, used_blocks=instance.used_blocks + more)
    assert freeness(fuller, headroom) < freeness(instance, headroom)
    wider = {priority: blocks + more for priority, blocks in headroom.items()}
    assert freeness(instance, wider) <= freeness(instance, headroom)


@given(reports())
def test_the_load_rule_sees_the_whole_queue_where_freeness_sees_its_head(instance: InstanceReport) -> None:
    assert queued_load_freeness(instance) <= freeness(instance, {})
    deeper = replace(instance, queued_blocks=instance.queued_blocks + 7, waiting=instance.waiting + 1)
    assert queued_load_freeness(deeper) < queued_load_freeness(instance)


def test_tokens_become_whole_blocks() -> None:
    assert [demand_blocks(n, 16) for n in (0, 1, 16, 17)] == [1, 1, 1, 2]
    literal = {-10: Headroom(1600), 0: Headroom(), 5: Headroom(1)}
    assert headroom_in_blocks(literal, 128, 851) == {-10: 13, 0: 0, 5: 1}


def test_headroom_section_5_3_is_the_capacity_beyond_a_target_load() -> None:
    high = {-10: Headroom(target_load_tokens=1600)}
    assert headroom_in_blocks(high, 16, 851) == {-10: 751}
    assert headroom_in_blocks(high, 16, 60) == {-10: 0}, "an instance smaller than the target load has none"


def test_what_is_under_way_counts_as_done() -> None:
    moving = report(running=5, used_blocks=90, leaving=2, leaving_blocks=30, arriving=1)
    assert freeness_after_moves(moving, {}) == (100 - 90 + 30) / (5 - 2 + 1)
    assert freeness_after_moves(moving, {0: 20}) == (100 - 90 + 30 - 20) / (5 - 2 + 1)
