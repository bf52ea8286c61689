"""Log files stay bounded, those too that other processes append to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llumnix.log import rotate


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "i0.log"


def test_a_file_that_is_appended_to_is_emptied_and_its_text_moves_on(log: Path) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for text in (b"first\n", b"second\n", b"third\n", b"fourth\n"):
        os.write(fd, text)
        rotate(log, max_bytes=5, backups=2)
    os.write(fd, b"now\n")
    os.close(fd)
    texts = {path.name: path.read_text() for path in log.parent.iterdir()}
    assert texts == {"i0.log": "now\n", "i0.log.1": "fourth\n", "i0.log.2": "third\n"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in log.parent.iterdir())


def test_a_small_one_is_left_alone(log: Path) -> None:
    log.write_text("short")
    rotate(log, max_bytes=5, backups=2)
    assert [path.name for path in log.parent.iterdir()] == ["i0.log"]
    assert log.read_text() == "short"


def test_without_backups_it_is_just_emptied(log: Path) -> None:
    log.write_text("too long")
    rotate(log, max_bytes=5, backups=0)
    assert {path.name: path.read_text() for path in log.parent.iterdir()} == {"i0.log": ""}
