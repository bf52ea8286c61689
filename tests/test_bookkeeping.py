"""What llumnixd writes down: a disk that fails is told once, and the cluster serves on."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from llumnix.admin import journal as journals
from llumnix.admin.journal import Journal
from llumnix.bookkeeping import RETRY_S, Bookkeeper
from llumnix.cluster import ledger as ledgers
from llumnix.config import parse_config
from llumnix.wire import ipc_endpoints

LEDGER = ledgers.new_ledger(parse_config({}), "00ff", ipc_endpoints(Path("/run/x"), 1), next_uid=1)


class Books:
    def __init__(self, state_dir: Path) -> None:
        self.now = 0.0
        self.faults: list[str] = []
        self.journal = Journal(state_dir / "journal.db")
        self.keeper = Bookkeeper(
            self.journal, state_dir, lambda target, message: self.faults.append(message), lambda: self.now
        )

    def kinds(self) -> list[str]:
        return [event.kind for event in self.journal.since(0, 100)]


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Books]:
    monkeypatch.setattr(journals, "BUSY_TIMEOUT_S", 0.05)
    made = Books(tmp_path)
    yield made
    made.journal.close()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_locked_journal_is_told_once_and_what_is_missing_when_it_works_again(
    books: Books, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llumnix")
    other = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    books.keeper.record("instance.ready", "info", "instance/i0", "ready")
    (told,) = errors(caplog)
    assert "cannot be written: database is locked" in told
    assert books.keeper.faults() == [told.removesuffix("; the cluster serves on")]
    books.now += RETRY_S
    books.keeper.record("instance.ready", "info", "instance/i1", "ready")
    assert len(errors(caplog)) == 1

    other.execute("ROLLBACK")
    other.close()
    books.keeper.record("instance.died", "error", "instance/i0", "not tried yet")
    assert books.kinds() == [] and books.faults == ["not tried yet"]
    books.now += RETRY_S
    books.keeper.note("test.written", "again")
    gap, written = books.journal.since(0, 100)
    assert gap.kind == "journal.gap" and gap.message.startswith("3 events are missing here: ")
    assert written.kind == "test.written"
    assert books.keeper.faults() == [] and "works again" in errors(caplog)[-1]
    books.keeper.note("test.written", "and again")
    assert books.kinds() == ["journal.gap", "test.written", "test.written"]


def test_a_ledger_that_cannot_be_written_is_written_once_it_can(books: Books, tmp_path: Path) -> None:
    (tmp_path / ledgers.LEDGER_FILE_NAME).mkdir()
    assert not books.keeper.write_down(LEDGER)
    assert "cannot be written: Is a directory" in books.keeper.faults()[0]
    (tmp_path / ledgers.LEDGER_FILE_NAME).rmdir()
    assert not books.keeper.write_down(LEDGER), "not tried again at once"
    books.now += RETRY_S
    assert books.keeper.write_down(LEDGER) and books.keeper.faults() == []
    assert ledgers.read(tmp_path) == LEDGER
