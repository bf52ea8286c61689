"""What is recorded is what is shown again; a file that is none is refused in one sentence."""

import errno
from io import StringIO
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llumnix_tui.cli import cli
from llumnix_tui.recording import Recorder, RecordingError, check, frames
from llumnix_tui.source import ReplaySource
from llumnix_tui.store import Store
from tests.tui.canned import NOW, Canned
from tests.tui.conftest import running, settled
from tests.tui.shown import shown


def record(path: Path, count: int = 3) -> Canned:
    canned, store = Canned(), Store()
    recorder = Recorder(path)
    events = canned.events()
    for number in range(count):
        store.add_events(events[: number + 1])
        recorder.write(canned.snapshot(NOW + number / 1000), store)
    recorder.close()
    return canned


def test_frames_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "shown.jsonl"
    canned = record(path)
    again = list(frames(path))
    fresh = Canned()
    assert [frame.snapshot for frame in again] == [fresh.snapshot(NOW + number / 1000) for number in range(3)]
    assert [event for frame in again for event in frame.events] == list(canned.events()[:3])


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "shown.jsonl"
    record(path)
    path.write_text(path.read_text()[:-5])
    assert len(list(frames(path))) == 2


async def test_a_replay_shows_the_recording_and_takes_no_commands(tmp_path: Path) -> None:
    path = tmp_path / "shown.jsonl"
    record(path)
    async with running(ReplaySource(path), (120, 40)) as pilot:
        while "replay ended" not in shown(pilot.app):
            await settled(pilot)
        assert "● running" in shown(pilot.app)
        await pilot.press("c")
        assert "Cancel" not in shown(pilot.app)
        assert "read-only" in shown(pilot.app)


async def test_a_damaged_line_ends_the_replay_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "shown.jsonl"
    record(path, count=2)
    with path.open("a") as lines:
        lines.write("{}\n")
    store = Store()
    await ReplaySource(path).run(store)
    assert store.connection.state == "replayed"
    assert list(store.warnings) == [f"--replay: line 3 of {path} is no frame of a recording"]


def test_a_full_disk_ends_the_recording_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(StringIO):
        name = "shown.jsonl"

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    recorder = Recorder(tmp_path / "shown.jsonl")
    recorder.close()
    monkeypatch.setattr(recorder, "_file", FullDisk())
    with pytest.raises(RecordingError, match=r"shown\.jsonl cannot be written: No space left on device"):
        recorder.write(Canned().snapshot(), Store())


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\n")
    for name in ("missing", "empty", "text", "binary"):
        with pytest.raises(RecordingError, match=f"--replay: .*{name}"):
            check(tmp_path / name)
    with pytest.raises(RecordingError, match=r"--record: cannot create .*text: File exists"):
        Recorder(tmp_path / "text")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--url", "127.0.0.1:8001"],
            "--url: '127.0.0.1:8001', expected a URL such as http://127.0.0.1:8001",
        ),
        (["--token-file", "/nowhere"], "--token-file: cannot read /nowhere: No such file or directory"),
        (["--replay", "/nowhere"], "--replay: cannot read /nowhere: No such file or directory"),
        (["--replay", "/a", "--record", "/b"], "--record: cannot be used with --replay"),
    ],
)
def test_wrong_options_are_explained_in_one_sentence(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
