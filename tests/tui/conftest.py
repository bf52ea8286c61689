"""The app in a pretended terminal, over a canned source or a real admin server."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from textual.pilot import Pilot

from llumnix_tui.app import LlumnixApp
from llumnix_tui.source import Source
from tests.tui.canned import NOW


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of day are the same everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@asynccontextmanager
async def running(
    source: Source, size: tuple[int, int] = (80, 24), *, read_only: bool = False, frozen: bool = True
) -> AsyncIterator[Pilot[None]]:
    """Run the app; its clock stands still unless told otherwise."""
    clock = (lambda: NOW + 0.2) if frozen else time.time
    app = LlumnixApp(source, read_only=read_only, clock=clock)
    async with app.run_test(size=size, notifications=True) as pilot:
        await settled(pilot)
        yield pilot


async def settled(pilot: Pilot[None]) -> None:
    """Let the app show all that has come in."""
    await pilot.pause()
    assert isinstance(pilot.app, LlumnixApp)
    pilot.app.tick()
    await pilot.pause()


def app_of(pilot: Pilot[None]) -> LlumnixApp:
    """Return the app that a pilot flies."""
    assert isinstance(pilot.app, LlumnixApp)
    return pilot.app


def notices(pilot: Pilot[None]) -> list[str]:
    """Return what the app has told the operator."""
    return [f"{notice.title}: {notice.message}" for notice in pilot.app._notifications]
