"""Workloads: the distributions are the published ones, traces are read as they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llumnix.errors import ConfigError
from llumnix.sim.lengths import DATASETS, FittedQuantiles, PowerLaw
from llumnix.sim.records import SimRequest
from llumnix.sim.traces import read_trace
from llumnix.sim.workloads import PAPER_SEED, Workload, arrival_times

LEVELS = (50, 80, 95, 99)


@pytest.mark.parametrize(
    ("panel", "percentiles"),
    [
        ("S-S", (38, 113, 413, 1464)),
        ("M-M", (32, 173, 1288, 4208)),
        ("L-L", (55, 582, 3113, 5166)),
    ],
)
def test_generated_prompts_have_the_percentiles_of_the_paper_table_1(
    panel: str, percentiles: tuple[int, ...]
) -> None:
    prompts = [request.prompt_tokens for request in Workload(panel, rate=1.0).build()]
    assert np.percentile(prompts, LEVELS) == pytest.approx(percentiles, abs=1)
    assert max(prompts) <= 6144


def test_draws_are_prompts_then_outputs_then_arrivals_from_one_legacy_generator() -> None:
    rng = np.random.RandomState(PAPER_SEED)
    prompts, outputs = PowerLaw(128, 2.0).draw(rng, 100), PowerLaw(512, 1.15).draw(rng, 100)
    gaps = rng.exponential(1 / 4.0, size=100)
    requests = Workload("S-L", 100, rate=4.0).build()
    assert [request.prompt_tokens for request in requests] == prompts.tolist()
    assert [request.output_tokens for request in requests] == outputs.tolist()
    # A Gamma process of CV 1 is the Poisson process, draw by draw.
    assert [request.arrival_s for request in requests] == pytest.approx((np.cumsum(gaps) - gaps[0]).tolist())


@pytest.mark.parametrize("dataset", ["ShareGPT", "BurstGPT"])
def test_fitted_lengths_have_the_published_mean_and_quantiles(dataset: str) -> None:
    for lengths in DATASETS[dataset]:
        assert isinstance(lengths, FittedQuantiles)
        drawn = lengths.draw(np.random.RandomState(1), 200_000)
        assert drawn.mean() == pytest.approx(lengths.mean, rel=0.02)
        assert np.percentile(drawn, LEVELS) == pytest.approx(lengths.quantiles, rel=0.04)
        assert drawn.min() >= 1
        assert drawn.max() <= 6144


@pytest.mark.parametrize("cv", [0.5, 2.0, 4.0])
def test_gamma_arrivals_have_the_rate_and_the_coefficient_of_variation(cv: float) -> None:
    gaps = np.diff(arrival_times(np.random.RandomState(3), 200_000, rate=5.0, cv=cv))
    assert gaps.mean() == pytest.approx(1 / 5.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_priorities_and_prefixes_leave_lengths_and_times_as_they_are() -> None:
    plain = Workload("S-S", 2000, rate=10.0)
    mixed = replace(plain, high_share=0.1, prefix_groups=3, prefix_tokens=64).build()
    assert [replace(r, priority=0, prefix_group=None, prefix_tokens=0) for r in mixed] == list(plain.build())
    assert sum(request.priority == -10 for request in mixed) == pytest.approx(200, rel=0.25)
    assert {request.prefix_group for request in mixed} == {0, 1, 2}
    assert all(request.prefix_tokens == min(64, request.prompt_tokens) for request in mixed)


def test_longest_leaves_out_longer_requests() -> None:
    requests = Workload("L-L", 500, rate=1.0, longest=1000).build()
    assert 0 < len(requests) < 500
    assert all(request.prompt_tokens + request.output_tokens <= 1000 for request in requests)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vidur.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n5.0,374,44\n7.5,396,109\n"),
        (
            "azure.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:15:46.5000000,374,44\n2023-11-16 18:15:49.0000000,396,109\n",
        ),
        (
            "burst.csv",
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
            "5,GPT-4,374,44,418,API log\n6,GPT-4,10,0,10,API log\n7.5,ChatGPT,396,109,505,API log\n",
        ),
        (
            "mooncake.jsonl",
            '{"timestamp": 1000, "input_length": 374, "output_length": 44}\n'
            '{"timestamp": 3500, "input_length": 396, "output_length": 109}\n',
        ),
    ],
)
def test_public_traces_are_read_by_their_column_names(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_trace(tmp_path / name) == [SimRequest(0, 0.0, 374, 44), SimRequest(1, 2.5, 396, 109)]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_common_hash_ids_become_prefix_groups(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"mooncake.{kind}"
    turns = ([1, 2], [1, 2, 3, 4], [7, 8], [1, 2, 3, 5], [9])
    rows = [
        {"timestamp": i, "input_length": 512 * len(ids) - 12, "output_length": 1, "hash_ids": ids}
        for i, ids in enumerate(turns)
    ]
    lines = [json.dumps(row) for row in rows]
    if kind == "csv":
        lines = [",".join(rows[0])] + [
            f'{i},{row["input_length"]},1,"{row["hash_ids"]}"' for i, row in enumerate(rows)
        ]
    path.write_text("".join(line + "\n" for line in lines))
    first, second, other, third, alone = read_trace(path)
    assert first.prefix_group == second.prefix_group == third.prefix_group is not None
    # All of the first prompt; of the longer ones the three blocks that they share.
    assert (first.prefix_tokens, second.prefix_tokens, third.prefix_tokens) == (1012, 1536, 1536)
    assert other.prefix_group is None
    assert alone.prefix_group is None


@pytest.mark.parametrize("hashes", ["7", '["a"]', "1 2"])
def test_hash_ids_that_are_no_list_of_integers_are_refused(tmp_path: Path, hashes: str) -> None:
    path = tmp_path / "mooncake.csv"
    path.write_text(f"timestamp,input_length,output_length,hash_ids\n0,5,1,{json.dumps(hashes)}\n")
    with pytest.raises(ConfigError, match=r"line 2: hash_ids = .* expected a list of integers"):
        read_trace(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "time,in,out\n1,2,3\n", "has the columns time, in, out: expected arrived_at, num_prefill"),
        (
            "t.csv",
            "arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,5\n1,many,5\n",
            "line 3: num_prefill_tokens = 'many' is not valid: expected a whole number, 0 or more.",
        ),
        (
            "t.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n",
            "line 2: TIMESTAMP = 'yesterday' is not valid: expected a date and time.",
        ),
        ("t.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0\n", "num_decode_tokens = None is not"),
        (
            "t.csv",
            "arrived_at,num_prefill_tokens,num_decode_tokens\nnan,1,1\n",
            "expected a number of seconds",
        ),
        ("t.jsonl", "[1, 2]\n", "line 1 is not valid: expected a JSON object."),
        ("t.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n", "has no requests"),
    ],
)
def test_a_bad_trace_is_told_in_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        read_trace(tmp_path / name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_rate_stretches_the_times_of_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n3,1,1\n4,1,1\n9,1,1\n")
    assert [request.arrival_s for request in Workload(str(path)).build()] == [0.0, 1.0, 6.0]
    assert [r.arrival_s for r in Workload(str(path), rate=1.0).build()] == pytest.approx([0.0, 1 / 3, 2.0])


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        (Workload("L-L"), "trace L-L has no arrival times: expected a rate (--rate)."),
        (Workload("X-L", rate=1.0), 'trace = "X-L" is not valid: expected a file, or one of S-S, S-M'),
        (Workload("/no/such.csv"), "/no/such.csv cannot be read (No such file or directory)"),
    ],
)
def test_an_impossible_workload_is_told_in_one_sentence(workload: Workload, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        workload.build()
    assert message in str(error.value)
