"""Recorded events of the scheduler: read back as written, and told again they give the same actions."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from llumnix import event_log
from llumnix.cluster.recorder import Recorder
from llumnix.core import events as ev
from llumnix.core.load import ClassLoad, Headroom, InstanceReport
from llumnix.core.member import InstanceView
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import ScalingSettings, SchedulerSettings
from llumnix.errors import ConfigError

SETTINGS = SchedulerSettings(
    policy="llumnix+",
    headroom={-10: Headroom(target_load_tokens=160), 0: Headroom()},
    scaling=ScalingSettings(enabled=True, min_instances=2, max_instances=5, hold_s=1.0, interval_s=0.5),
)


def random_report(rng: random.Random, uid: int, seq: int) -> InstanceReport:
    running, waiting = rng.randint(0, 8), rng.choice((0, 0, 3))
    used = rng.randint(running, 100) if running else 0
    return InstanceReport(
        uid=uid,
        seq=seq,
        block_size=16,
        total_blocks=100,
        used_blocks=used,
        max_running=8,
        running=running,
        waiting=waiting,
        queued_blocks=30 * waiting,
        head_blocks=30 if waiting else 0,
        classes={0: ClassLoad(running, waiting, used)},
        taken={0: seq},
    )


class Live:
    """A scheduler that is recorded, and a life for it: instances come up, report, die, are drained."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(SETTINGS)
        self.recorder: Recorder | None = None
        self.actions: list[ev.Action] = []
        self.now = 100.0
        self.rng = random.Random(7)
        self.seq = 0

    def tell(self, event: ev.Event) -> None:
        assert self.recorder is not None
        self.recorder.record(event, self.now)
        with suppress(ev.CommandRefused, ev.UnknownInstance):
            self.actions += self.scheduler.handle(event, self.now)

    def live(self, rounds: int) -> None:
        for _ in range(rounds):
            self.now += 0.1
            self.seq += 1
            for view in self.scheduler.instances():
                if view.state is ev.InstanceState.PENDING:
                    self.tell(ev.InstancePlaced(view.uid, "n0", view.uid))
                    self.tell(ev.InstanceReady(view.uid))
                elif view.state is ev.InstanceState.STOPPING:
                    self.tell(ev.InstanceDied(view.uid, "stopped"))
                else:
                    self.tell(ev.Beat(view.uid, 0.0, None, 0.5))
                    self.tell(ev.Reported(random_report(self.rng, view.uid, self.seq)))
            self.tell(ev.HeldRequests(0, self.rng.randint(0, 2), 900, 560, 0))
            self.tell(ev.Tick())
            if self.rng.random() < 0.1:
                victim = self.rng.choice(self.scheduler.instances())
                self.tell(self.rng.choice(self.commands(victim)))

    def commands(self, view: InstanceView) -> list[ev.Event]:
        return [
            ev.InstanceDied(view.uid, "killed by signal 9"),
            ev.Drain(view.instance, float("inf"), remove=True),
            ev.Cordon(view.instance),
            ev.Uncordon(view.instance),
            ev.ScaleTo(self.rng.randint(0, 6)),
            ev.TerminationNotice(view.instance, 5.0),
            ev.Drain("i99", 1.0),
        ]


def replayed(path: Path) -> list[ev.Action]:
    recording = event_log.read(path)
    scheduler, actions = Scheduler(recording.settings), []
    for now, event in recording.events:
        with suppress(ev.CommandRefused, ev.UnknownInstance):
            actions += scheduler.handle(event, now)
    return actions


def recorded(path: Path, rounds: int, max_bytes: int = 2**30) -> Live:
    life = Live()
    life.recorder = Recorder(path, life.scheduler, max_bytes=max_bytes)
    life.tell(ev.AddInstances(3))
    life.live(rounds)
    life.recorder.close()
    return life


def test_recorded_events_give_the_same_actions(tmp_path: Path) -> None:
    life = recorded(tmp_path / "events", rounds=300)
    kinds = {type(action).__name__ for action in life.actions}
    assert kinds >= {"MoveRequests", "StartInstance", "StopInstance", "PublishTable", "Record"}
    assert replayed(tmp_path / "events") == life.actions


def test_files_are_rotated_and_each_can_be_replayed_alone(tmp_path: Path) -> None:
    path = tmp_path / "events"
    life = recorded(path, rounds=1500, max_bytes=60_000)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 8 and all(file.stat().st_size <= 130_000 for file in files)
    decided = [action for action in replayed(path) if not isinstance(action, ev.Record)]
    tail = [action for action in life.actions if not isinstance(action, ev.Record)]
    assert len(decided) > 1 and decided[-1] == tail[-1]


def test_other_settings_begin_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "events"
    life = Live()
    life.recorder = Recorder(path, life.scheduler)
    life.tell(ev.AddInstances(2))
    life.live(3)
    life.scheduler.reconfigure(replace(SETTINGS, policy="load"))
    life.live(3)
    life.recorder.close()
    assert event_log.read(path.with_name("events.1")).settings.policy == "llumnix+"
    again = event_log.read(path)
    assert again.settings.policy == "load"
    assert isinstance(next(again.events)[1], ev.AdoptInstances)


def test_cordoned_nodes_and_drains_under_way_open_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "events"
    life = Live()
    life.recorder = Recorder(path, life.scheduler)
    life.tell(ev.AddInstances(2))
    life.live(3)
    life.tell(ev.CordonNode("n7"))
    life.tell(ev.Drain("i0", 50.0, restart=True, abort_left=True))
    life.scheduler.reconfigure(replace(SETTINGS, policy="load"))
    life.live(1)
    life.recorder.close()
    now, opening = next(event_log.read(path).events)
    assert isinstance(opening, ev.AdoptInstances) and opening.cordoned_nodes == ("n7",)
    assert opening.instances[0].drain == life.scheduler.instance("i0").drain
    assert opening.instances[0].drain is not None and now < opening.instances[0].drain.deadline


def test_a_file_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "events"
    recorded(path, rounds=5)
    whole = list(event_log.read(path).events)
    path.write_bytes(path.read_bytes()[:-3])
    assert list(event_log.read(path).events) == whole[:-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with settings"),
        (b"[scheduler]\npolicy = 'load'\n", "does not begin with settings"),
        (b"\x00\x00\x00\x04abcd", "is not a file of"),
    ],
)
def test_a_file_of_something_else_is_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "events"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        event_log.read(path)


def test_a_record_that_cannot_be_written_does_not_stop_the_scheduler(tmp_path: Path) -> None:
    life = Live()
    (tmp_path / "file").write_text("")
    life.recorder = Recorder(tmp_path / "file" / "events", life.scheduler)
    life.tell(ev.AddInstances(2))
    assert len(life.scheduler.instances()) == 2
