"""The command llumnix-sim: what it prints and writes, and that equal runs print equal bytes."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llumnix.sim import cli

RUN = ("run", "--trace", "S-S", "--rate", "20", "--requests", "120", "--instances", "4")


class Outcome:
    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in this process, as importing vLLM takes longer than a small run."""

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["llumnix-sim", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(ended.value.code, captured.out, captured.err)

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("paper", "--figure", "12"), "--figure 12 is not valid: expected 11, 13, 14 or 15."),
        (("run", "--trace", "L-L"), "trace L-L has no arrival times: expected a rate (--rate)."),
        (
            (*RUN, "--policies", "load,best"),
            'policy = "best" is not valid: expected one of '
            "llumnix+, llumnix, load, least_requests, round_robin.",
        ),
        (
            (*RUN, "--profile", "b7"),
            "--profile is not valid: unknown hardware profile 'b7': "
            "expected a10-llama-7b, a10x4-llama-30b or a .json file.",
        ),
    ],
)
def test_wrong_input_ends_with_code_2_and_one_sentence(
    sim: Any, arguments: tuple[str, ...], sentence: str
) -> None:
    outcome = sim(*arguments)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", sentence + "\n")


def test_two_equal_runs_print_and_write_the_same_bytes(sim: Any, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    printed, written = set(), set()
    for attempt in range(2):
        files = [tmp_path / f"{attempt}{name}" for name in (".json", ".csv")]
        outcome = sim(
            *RUN, "--policies", "llumnix,load", "--out", str(files[0]), "--out-requests", str(files[1])
        )
        assert outcome.code == 0, outcome.err
        printed.add(outcome.out)
        written.add(tuple(file.read_bytes() for file in files))
    assert len(printed) == len(written) == 1
    table = printed.pop()
    assert "llumnix" in table
    assert "prefill mean" in table
    requests = list(csv.DictReader(files[1].read_text().splitlines()))
    assert [(row["policy"], int(row["id"])) for row in requests] == [
        (policy, number) for policy in ("llumnix", "load") for number in range(120)
    ]
    runs = json.loads(files[0].read_text())
    assert [(run["policy"], run["requests"]) for run in runs] == [("llumnix", 120), ("load", 120)]


def test_another_seed_is_another_run(sim: Any) -> None:
    pytest.importorskip("vllm")
    first, second = (sim(*RUN, "--json", "--seed", seed).out for seed in ("1", "2"))
    assert json.loads(first)[0]["prefill_mean_s"] != json.loads(second)[0]["prefill_mean_s"]


def test_a_request_that_no_instance_holds_is_told(sim: Any, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    trace = tmp_path / "long.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,13000,1000\n1,10,3\n")
    outcome = sim("run", "--trace", str(trace))
    assert (outcome.code, outcome.out) == (2, "")
    assert "request 0 has 13000 + 1000 tokens" in outcome.err
    assert "(--longest leaves some out)" in outcome.err
    shorter = sim("run", "--trace", str(trace), "--longest", "5000", "--json")
    assert json.loads(shorter.out)[0]["requests"] == 1


@pytest.mark.slow
def test_processes_beside_one_another_give_the_same_results(sim: Any) -> None:
    pytest.importorskip("vllm")
    alone, beside = (sim(*RUN, "--json", "--policies", "load,llumnix", "--jobs", jobs) for jobs in ("1", "2"))
    assert alone.out == beside.out


def test_priorities_show_a_row_of_each_class(sim: Any) -> None:
    pytest.importorskip("vllm")
    rows = json.loads(sim(*RUN, "--json", "--high-share", "0.2").out)
    assert [row["priority"] for row in rows] == ["all", "-10", "0"]
    assert rows[1]["requests"] + rows[2]["requests"] == rows[0]["requests"] == 120


def test_paper_gives_a_list_of_objects_with_the_published_points_and_a_plot(sim: Any, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    plot = tmp_path / "figure.png"
    what = ("paper", "--figure", "11", "--panel", "S-S", "--rate", "36", "--requests", "200")
    outcome = sim(*what, "--policies", "load,llumnix", "--json", "--plot", str(plot))
    assert outcome.code == 0, outcome.err
    load, llumnix = json.loads(outcome.out)
    assert (load["policy"], llumnix["policy"]) == ("load", "llumnix")
    for row in (load, llumnix):
        assert (row["panel"], row["rate"], row["requests"]) == ("S-S", 36.0, 200)
        assert row["prefill_p99_s"] >= row["prefill_mean_s"] > 0
        assert row["request_mean_s"] > row["prefill_mean_s"]
        assert {"decode_p99_s", "preemption_loss_s", "migrations"} <= row.keys()
    assert load["published_prefill_p99_s"] == 71.7285
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_figure_13_compares_the_classes_with_and_without_priorities(sim: Any) -> None:
    pytest.importorskip("vllm")
    what = ("paper", "--figure", "13", "--cv", "4", "--requests", "200", "--json")
    rows = json.loads(sim(*what, "--policies", "llumnix-base,llumnix").out)
    assert [(row["policy"], row["panel"]) for row in rows] == [
        (policy, panel) for policy in ("llumnix-base", "llumnix") for panel in ("high", "normal")
    ]
    assert rows[0]["requests"] == rows[2]["requests"] < rows[1]["requests"]


def test_figure_15_scales_and_tells_the_instances_at_equal_tails(sim: Any) -> None:
    pytest.importorskip("vllm")
    what = ("paper", "--figure", "15", "--panel", "threshold_25", "--requests", "100", "--policies", "load")
    outcome = sim(*what)
    assert outcome.code == 0, outcome.err
    assert "at a P99 prefill of 4 s load: " in outcome.out
    assert "threshold_25" in outcome.out
