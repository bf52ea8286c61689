"""The journal: order, bounds, restarts, damage."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llumnix.admin.journal import MAX_DATA_BYTES, MAX_MESSAGE_CHARS, Journal, JournalError


def fill(journal: Journal, count: int) -> list[int]:
    return [journal.append("test.event", f"number {index}").seq for index in range(count)]


def test_an_event_comes_back_as_it_was_appended(journal: Journal) -> None:
    written = journal.append(
        "instance.dead",
        "exit code 9",
        severity="error",
        actor="ops",
        target="instance/i0",
        data={"code": -9, "nested": {"ids": ["a", "b"]}},
    )
    assert journal.since(0, 10) == [written]
    assert written.data == {"code": -9, "nested": {"ids": ["a", "b"]}}
    assert journal.last_seq == written.seq


def test_since_pages_through_all_events_in_order(journal: Journal) -> None:
    seqs = fill(journal, 10)
    seen: list[int] = []
    while page := journal.since(seen[-1] if seen else 0, 3):
        assert len(page) <= 3
        seen += [event.seq for event in page]
    assert seen == seqs == sorted(set(seqs))


def test_latest_goes_backwards_between_its_bounds(journal: Journal) -> None:
    seqs = fill(journal, 6)
    events = journal.latest(since=seqs[0], before=seqs[5], limit=3)
    assert [event.seq for event in events] == [seqs[4], seqs[3], seqs[2]]


def test_the_oldest_events_are_trimmed_and_numbers_go_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db", max_events=50)
    seqs = fill(journal, 500)
    kept = [event.seq for event in journal.since(0, 1000)]
    assert 50 <= len(kept) <= 51
    assert kept == seqs[-len(kept) :]
    journal.close()


def test_numbers_go_on_after_a_restart_even_with_every_row_gone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    last = fill(journal, 5)[-1]
    journal.close()
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM events")
    database.close()

    reopened = Journal(path)
    assert reopened.last_seq == last
    assert reopened.append("test.event").seq == last + 1
    reopened.close()


def test_a_smaller_bound_takes_hold_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    fill(journal, 100)
    journal.close()
    reopened = Journal(tmp_path / "journal.db", max_events=10)
    reopened.append("test.event")
    assert len(reopened.since(0, 1000)) == 10
    reopened.close()


def test_appends_from_many_threads_all_arrive_once(journal: Journal) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.extend(fill(journal, 50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [event.seq for event in journal.since(0, 1000)]
    assert len(set(numbers)) == 200 == journal.appended


def test_events_survive_kill_9(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from llumnix.admin.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for index in range(20): journal.append('test.event', str(index))\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    path = tmp_path / "journal.db"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    journal = Journal(path)
    assert [event.message for event in journal.since(0, 100)] == [str(index) for index in range(20)]
    journal.close()


def _not_a_database(path: Path) -> None:
    path.write_bytes(b"this is no database at all" * 100)


def _torn_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


def _foreign_table(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE events (other TEXT)")
    database.close()


@pytest.mark.parametrize("damage", [_not_a_database, _torn_pages, _foreign_table])
def test_a_damaged_file_is_moved_aside_and_the_journal_says_so(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    last = fill(journal, 200)[-1]
    journal.close()
    assert callable(damage)
    damage(path)
    damaged = path.read_bytes()

    replaced = Journal(path)
    first = replaced.since(0, 10)[0]
    assert (first.kind, first.severity) == ("journal.replaced", "error")
    assert Path(str(first.data["moved_to"])).read_bytes() == damaged
    assert first.seq > last, "a client that resumes after an old number would wait for ever"
    replaced.close()

    reopened = Journal(path)
    assert reopened.append("test.event").seq == first.seq + 1
    reopened.close()


def test_a_place_that_cannot_be_written_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "journal.db").mkdir()
    with pytest.raises(JournalError, match=r"journal\.db"):
        Journal(tmp_path / "journal.db")


def test_a_failed_write_is_a_named_error(journal: Journal, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "journal.db") as database:
        database.execute("DROP TABLE events")
    database.close()
    with pytest.raises(JournalError, match="cannot be written"):
        journal.append("test.event")


def test_nobody_else_can_read_the_files(journal: Journal, tmp_path: Path) -> None:
    journal.append("test.event")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes and set(modes.values()) == {0o600}


def test_long_messages_and_data_are_cut(journal: Journal) -> None:
    event = journal.append("test.event", "x" * 10_000, data={"blob": "y" * MAX_DATA_BYTES})
    assert len(event.message) == MAX_MESSAGE_CHARS and event.message.endswith("x…")
    assert set(event.data) == {"left_out"}
    assert journal.since(0, 1) == [event]


def test_data_that_json_cannot_say_is_kept_as_null_or_text(journal: Journal, tmp_path: Path) -> None:
    event = journal.append("test.event", data={"freeness": float("-inf"), "path": tmp_path})
    assert event.data == {"freeness": None, "path": str(tmp_path)}


@pytest.mark.parametrize("kind", ["", "With Space", "new\nline", "trailing.", "a..b"])
def test_kinds_that_would_break_an_event_stream_are_refused(journal: Journal, kind: str) -> None:
    with pytest.raises(ValueError, match="kind"):
        journal.append(kind)
    assert journal.last_seq == 0


def test_listeners_hear_of_each_append_until_they_leave(journal: Journal) -> None:
    heard: list[int] = []
    leave = journal.subscribe(lambda: heard.append(journal.last_seq))
    seqs = fill(journal, 3)
    leave()
    fill(journal, 2)
    assert heard == seqs
