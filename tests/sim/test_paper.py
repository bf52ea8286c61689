"""The experiments of the paper's figures: their points, the published values, the matched rates."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llumnix.errors import ConfigError
from llumnix.sim import matching, paper, published
from llumnix.sim.records import SimSetup
from llumnix.sim.tables import cost_lines

BASE = SimSetup()


def test_every_point_of_figure_11_runs_at_its_published_rate() -> None:
    points = paper.points_of(11, BASE, 100)
    assert len(points) == 35
    assert all(point.x == point.rate and point.workload.trace == point.panels[0] for point in points)
    assert {point.setup.migration_threshold for point in points if point.panels == ("M-M",)} == {10.0}
    assert {point.setup.migration_threshold for point in points if point.panels == ("L-L",)} == {3.0}


def test_published_values_stand_beside_the_policy_that_they_are_of() -> None:
    (point,) = (p for p in paper.points_of(11, BASE, 100, ["L-L"]) if p.x == 3.0)
    assert point.published("L-L", "load")["prefill_p99_s"] == 41.2123
    assert point.published("L-L", "llumnix")["prefill_p99_s"] == 2.7802
    assert point.published("L-L", "least_requests") == {}
    (cost,) = paper.points_of(15, BASE, 100, ["threshold_65"])
    assert cost.published("threshold_65", "load") == {"average_instances": 14.25, "prefill_p99_s": 4.587}


def test_priorities_are_compared_on_one_run_for_both_classes() -> None:
    points = paper.points_of(13, BASE, 100)
    assert [(point.x, point.panels) for point in points] == [(cv, ("high", "normal")) for cv in (2, 4, 6, 8)]
    with_classes, base = points[0].run("llumnix", 1), points[0].run("llumnix-base", 1)
    assert base.workload == with_classes.workload
    assert (base.ignore_priorities, base.setup.policy, dict(base.setup.headroom)) == (True, "llumnix", {})
    assert with_classes.setup.headroom[paper.HIGH_PRIORITY].target_load_tokens == 1600


def test_scaling_points_keep_freeness_within_fifty() -> None:
    bounds = []
    for point in paper.points_of(15, BASE, 100):
        assert point.setup.scaling is not None
        bounds.append((point.setup.scaling.scale_up_freeness, point.setup.scaling.scale_down_freeness))
    assert bounds == [(t, t + 50) for t in (5, 25, 45, 65, 85)]


def test_a_rate_selects_a_point_or_replaces_the_rate_where_the_axis_is_another() -> None:
    figure_11 = paper.at_rates(paper.points_of(11, BASE, 100, ["L-L"]), [3.0, 3.5])
    assert [(point.x, point.rate) for point in figure_11] == [(3.0, 3.0), (3.5, 3.5)]
    assert [bool(point.published("L-L", "load")) for point in figure_11] == [True, False]
    figure_13 = paper.at_rates(paper.points_of(13, BASE, 100), [30.0])
    assert [(point.x, point.rate) for point in figure_13] == [(cv, 30.0) for cv in (2, 4, 6, 8)]


def test_an_unknown_panel_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r'panel = "X-X" is not valid: figure 13 has high, normal.'):
        paper.points_of(13, BASE, 100, ["X-X"])


@pytest.mark.parametrize("capacity", [2.0, 3.7, 6.0])
def test_the_matched_rate_is_where_the_baseline_has_its_published_tail(capacity: float) -> None:
    (point,) = paper.at_rates(paper.points_of(11, BASE, 100, ["L-L"]), [3.0])
    rates: list[float] = []

    def measure(rate: float) -> float:
        rates.append(rate)
        return math.exp(12 * (rate - capacity)) + 0.5

    found = matching.find_match(point, measure, seeds=1)
    assert found.prefill_p99_s == pytest.approx(41.2123, rel=0.15)
    assert found.rate == rates[-1]
    assert len(rates) <= 14


def test_a_kept_rate_is_found_for_the_same_point_only(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    points = paper.at_rates(paper.points_of(11, BASE, 100, ["L-L"]), [2.9, 3.0])
    found = matching.find_match(points[1], lambda rate: 41.0, seeds=1)
    matching.keep_match(found, path)
    matching.keep_match(found, path)
    assert len(json.loads(path.read_text())) == 1
    kept = matching.read_matches(path)
    assert matching.kept_match(points[1], kept) == found
    assert matching.kept_match(points[0], kept) is None
    longer = paper.at_rates(paper.points_of(11, BASE, 200, ["L-L"]), [3.0])
    assert matching.kept_match(longer[0], kept) is None


def test_where_nothing_was_published_there_is_nothing_to_match() -> None:
    (unpublished,) = paper.at_rates(paper.points_of(11, BASE, 100, ["L-L"]), [9.0])
    with pytest.raises(ConfigError, match=r"panel L-L has no published point at 9: no rate to match."):
        matching.target_s(unpublished)
    with pytest.raises(ConfigError, match="figure 15 has no pressure to match"):
        matching.target_s(paper.points_of(15, BASE, 100)[0])


def test_instances_are_compared_at_the_same_tail() -> None:
    rows = [
        {
            "policy": policy,
            "average_instances": values["average_instances"],
            "prefill_p99_s": values["prefill_p99_s"],
        }
        for (figure, _), panel in published.points().items()
        if figure == 15
        for policy, values in panel[0.0].items()
    ]
    load, llumnix = cost_lines(rows)
    # The paper's own points: the 20 % of its section 6.5.
    assert load == "at a P99 prefill of 4 s load: 14.65 instances"
    assert llumnix.startswith("at a P99 prefill of 4 s llumnix: 11.50 instances (-2")
    assert cost_lines(rows[:1]) == ["at a P99 prefill of 4 s load: outside of its points"]
