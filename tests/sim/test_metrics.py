"""Metrics of a run made by hand: the paper's definitions (section 6.1)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llumnix.sim import report
from llumnix.sim.metrics import Metrics
from llumnix.sim.records import RequestResult, RunResult, SimSetup


def request(number: int, *, first: float, finish: float, output: int = 11, **more: object) -> RequestResult:
    row = RequestResult(
        id=number,
        arrival_s=float(number),
        prompt_tokens=5,
        output_tokens=output,
        priority=0,
        first_token_s=number + first,
        finish_s=number + first + finish,
        preemptions=0,
        preemption_loss_s=0.0,
        migrations=0,
        instances=(0,),
    )
    return replace(row, **more)  # type: ignore[arg-type]


def run_of(*requests: RequestResult) -> RunResult:
    return RunResult(
        setup=SimSetup(policy="load", seed=7),
        requests=requests,
        migrations_committed=3,
        migrations_aborted=1,
        preemptions=2,
        instance_counts=((0.0, 16),),
        average_instances=16.0,
        duration_s=20.0,
        engine_steps=50,
        cpu_s=1.5,
    )


RUN = run_of(
    request(0, first=1.0, finish=2.0, preemptions=2, preemption_loss_s=4.0),
    request(1, first=3.0, finish=4.0, priority=-10, migrations=1),
    request(2, first=5.0, finish=0.0, output=1),
    request(3, first=7.0, finish=0.5, instances=(2, 3)),
)


def test_prefill_counts_from_arrival_and_decode_from_the_first_token() -> None:
    metrics = Metrics.of(RUN)
    assert metrics.prefill_mean_s == pytest.approx(4.0)
    assert metrics.prefill_p50_s == pytest.approx(4.0)
    assert metrics.prefill_p99_s == pytest.approx(7.0 - 0.06)
    # Ten gaps each; the request of one token has none.
    assert metrics.decode_mean_s == pytest.approx((0.2 + 0.4 + 0.05) / 3)
    assert metrics.decode_p50_s == pytest.approx(0.2)
    assert metrics.request_mean_s == pytest.approx((3 + 7 + 5 + 7.5) / 4)


def test_preemption_loss_is_a_mean_over_all_requests() -> None:
    metrics = Metrics.of(RUN)
    assert metrics.preemption_loss_s == pytest.approx(1.0)
    assert (metrics.preemptions, metrics.migrations, metrics.migrations_aborted) == (2, 3, 1)


def test_metrics_of_a_class_are_those_of_its_requests() -> None:
    high = Metrics.of(RUN, [request for request in RUN.requests if request.priority < 0])
    assert (high.requests, high.migrations, high.preemptions) == (1, 1, 0)
    assert high.prefill_mean_s == pytest.approx(3.0)
    assert Metrics.of(RUN, []).prefill_p99_s == 0.0


def test_the_median_is_taken_of_each_figure() -> None:
    one = Metrics.of(RUN)
    runs = [replace(one, prefill_mean_s=value, decode_mean_s=-value) for value in (3.0, 1.0, 2.0)]
    middle = Metrics.median_of(runs)
    assert (middle.prefill_mean_s, middle.decode_mean_s) == (2.0, -2.0)


def test_records_hold_every_class_and_nothing_that_differs_between_equal_runs() -> None:
    records = report.run_records(RUN, rate=2.0)
    assert [(r["policy"], r["priority"], r["requests"]) for r in records] == [
        ("load", "all", 4),
        ("load", "-10", 1),
        ("load", "0", 3),
    ]
    assert records == report.run_records(replace(RUN, cpu_s=99.0), rate=2.0)


def test_csv_and_json_hold_the_same_rows() -> None:
    records = report.request_records(RUN)
    assert json.loads(report.as_json(records)) == records
    header, *lines = report.as_csv(records).splitlines()
    assert header.startswith("policy,id,arrival_s,prompt_tokens,output_tokens,priority")
    assert len(lines) == 4
    assert dict(zip(header.split(","), lines[3].split(","), strict=True))["instances"] == "2 3"
