"""Each screen as text, in both sizes, with a frozen clock, against files that are reviewed as diffs.

After a change that is meant: LLUMNIX_UPDATE_SNAPSHOTS=1 pytest tests/tui/test_snapshots.py, and read
the diff.
"""

import os
from pathlib import Path

import pytest
from textual.pilot import Pilot

from llumnix_tui.snapshot import Snapshot
from tests.tui.canned import NOW, Canned, CannedSource
from tests.tui.conftest import app_of, running, settled
from tests.tui.shown import shown

FILES = Path(__file__).parent / "snapshots"
UPDATE = bool(os.environ.get("LLUMNIX_UPDATE_SNAPSHOTS"))
SMALL, LARGE = (80, 24), (120, 40)
SCREENS = {
    "cluster": ["1"],
    "requests": ["2"],
    "migrations": ["3"],
    "events": ["4"],
    "instance": ["1", "enter"],
}
DIALOGS = {
    "drain": ["1", "d"],
    "abort": ["2", "x"],
    "migrate": ["2", "m"],
    "help": ["question_mark"],
    "request": ["2", "enter"],
}


def matches(pilot: Pilot[None], name: str) -> None:
    """Compare what is on the screen with its file, or write the file where that is wanted."""
    file, text = FILES / f"{name}.txt", shown(pilot.app)
    if UPDATE:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text(), f"{file.name} differs"


def loaded(num_instances: int = 4, num_nodes: int = 1) -> CannedSource:
    canned = Canned(num_instances, num_requests=40, num_nodes=num_nodes)
    return CannedSource(*(canned.snapshot(NOW - ago) for ago in range(90, -1, -1)), events=canned.events())


def bare() -> Snapshot:
    """Return a cluster that has only begun to start."""
    snapshot = Canned().snapshot()
    cluster = snapshot.cluster.model_copy(
        update={"state": "starting", "latency": None, "counts": type(snapshot.cluster.counts)()}
    )
    return Snapshot(taken_at=NOW, cluster=cluster, requests=())


@pytest.mark.parametrize(
    ("size", "instances", "nodes"), [(SMALL, 4, 1), (LARGE, 16, 2)], ids=["80x24", "120x40"]
)
async def test_loaded_screens(size: tuple[int, int], instances: int, nodes: int) -> None:
    async with running(loaded(instances, nodes), size) as pilot:
        for name, keys in SCREENS.items():
            await pilot.press(*keys)
            if name == "instance" and nodes > 1:
                await pilot.press("j", "enter")  # the first row is a node's
            await settled(pilot)
            matches(pilot, f"{name}-{size[0]}x{size[1]}")


async def test_dialogs() -> None:
    async with running(loaded()) as pilot:
        for name, keys in DIALOGS.items():
            await pilot.press(*keys)
            await settled(pilot)
            matches(pilot, f"dialog-{name}")
            await pilot.press("escape")


async def test_empty_screens() -> None:
    async with running(CannedSource(bare())) as pilot:
        for name in ("cluster", "requests", "migrations", "events"):
            await pilot.press(*SCREENS[name])
            await settled(pilot)
            matches(pilot, f"{name}-empty")


async def test_disconnected_screens() -> None:
    async with running(loaded()) as pilot:
        app_of(pilot).store.lost("no answer from http://127.0.0.1:8001: All connection attempts failed")
        for name in ("cluster", "requests", "migrations", "events"):
            await pilot.press(*SCREENS[name])
            await settled(pilot)
            matches(pilot, f"{name}-disconnected")


async def test_one_sentence_on_a_terminal_that_is_too_small() -> None:
    async with running(loaded(), (60, 20)) as pilot:
        assert shown(pilot.app).strip() == "llumnix-tui needs 80x24 characters; this terminal has 60x20."
        await pilot.resize_terminal(80, 24)
        await settled(pilot)
        assert "● running" in shown(pilot.app)


async def test_everything_is_readable_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with running(loaded()) as pilot:
        assert pilot.app.no_color
        await settled(pilot)
        matches(pilot, "cluster-80x24")  # glyphs and words say all that colours do
        colours = [
            segment.style.color.get_truecolor()
            for strip in pilot.app.screen._compositor.render_strips()
            for segment in strip
            if segment.style and segment.style.color
        ]
        assert colours
        assert all(colour.red == colour.green == colour.blue for colour in colours)


async def test_a_paused_display_stands_still() -> None:
    canned = Canned()
    async with running(CannedSource(canned.snapshot())) as pilot:
        await pilot.press("p")
        before = shown(pilot.app)
        assert "‖ paused" in before
        app_of(pilot).store.take(canned.snapshot(NOW + 5))
        await settled(pilot)
        assert shown(pilot.app).splitlines()[1:] == before.splitlines()[1:]
        await pilot.press("p")
        await settled(pilot)
        assert shown(pilot.app).splitlines()[1:] != before.splitlines()[1:]
