"""Replay: the same events seen by another policy, with what it would have decided and why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from llumnix.core import events as ev
from llumnix.core.load import ClassLoad, InstanceReport
from llumnix.core.settings import SchedulerSettings
from llumnix.errors import ConfigError
from llumnix.event_log import EventLog
from llumnix.sim import cli
from llumnix.sim.replay import replay_file

FULL, EMPTY = 0, 1


def report(uid: int, seq: int, used_blocks: int) -> InstanceReport:
    running = used_blocks // 10
    return InstanceReport(
        uid=uid,
        seq=seq,
        block_size=16,
        total_blocks=100,
        used_blocks=used_blocks,
        max_running=64,
        running=running,
        waiting=0,
        classes={0: ClassLoad(running, 0, used_blocks)},
    )


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three seconds of two instances under `load`: one is full, the other has nothing to do."""
    path = tmp_path / "events"
    log = EventLog(path)
    log.begin(SchedulerSettings(policy="load"), [], 10.0)
    log.write(ev.AddInstances(2), 10.0)
    for uid in (1, 2):
        log.write(ev.InstancePlaced(uid, "n0", uid), 10.0)
        log.write(ev.InstanceReady(uid), 10.0)
    log.write(ev.Cordon("no-such"), 10.0)
    for tick in range(30):
        now = 10.0 + tick / 10
        log.write(ev.Reported(report(1, tick, used_blocks=100)), now)
        log.write(ev.Reported(report(2, tick, used_blocks=0)), now)
        log.write(ev.Tick(), now)
    log.close()
    return path


def test_a_policy_agrees_with_itself(recording: Path) -> None:
    replayed = replay_file(recording, "load")
    assert replayed.differences == []
    assert replayed.decisions["recorded"] == replayed.decisions["other"]
    assert replayed.decisions["recorded"]["start"] == 2
    assert (replayed.events, replayed.duration_s) == (96, pytest.approx(2.9))


def test_another_policy_shows_the_moves_it_would_have_ordered_once_each_with_the_reason(
    recording: Path,
) -> None:
    replayed = replay_file(recording, "llumnix")
    assert replayed.decisions["recorded"]["move"] == 0
    moves = [item for item in replayed.differences if item.decision.kind == "move"]
    # The order stands for the rest of the record; that it is renewed is no new decision.
    (move,) = moves
    assert (move.side, move.decision.subject) == ("other", "1 -> 2")
    assert "freeness" in move.reason
    assert replayed.decisions["other"]["move"] == 1


def test_the_command_shows_counts_and_reasons(
    recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--json"]):
        monkeypatch.setattr(
            sys, "argv", ["llumnix-sim", "replay", str(recording), "--policy", "llumnix", *arguments]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        out = capsys.readouterr().out
        if arguments:
            assert any(row["decision"] == {"kind": "move", "subject": "1 -> 2"} for row in json.loads(out))
        else:
            assert "load (recorded)" in out
            assert "move 1 -> 2" in out


def test_what_is_no_record_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        replay_file(tmp_path / "none", "load")
