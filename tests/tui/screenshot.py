"""Print an SVG screenshot of the cluster screen: `python -m tests.tui.screenshot > tui/screenshot.svg`.

Of a canned cluster of 16 instances, or of a running one with --url and --token-file.
"""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from llumnix_tui.app import LlumnixApp
from llumnix_tui.client import AdminClient
from llumnix_tui.source import LiveSource, Source
from tests.tui.canned import NOW, Canned, CannedSource

CANNED_SECONDS = 150


def main(
    url: Annotated[str | None, typer.Option(help="The admin API of a running cluster.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Its token.")] = None,
    wait_s: Annotated[float, typer.Option(help="For how long to watch it before.")] = 60.0,
    width: int = 120,
    height: int = 40,
) -> None:
    """Print the screenshot."""
    source: Source
    if url is None:
        canned = Canned(num_instances=16, num_requests=300, num_nodes=2)
        shots = [canned.snapshot(NOW - CANNED_SECONDS + second) for second in range(CANNED_SECONDS + 1)]
        source, wait_s = CannedSource(*shots, events=canned.events()), 0.5
        app = LlumnixApp(source, clock=lambda: NOW + 0.2)
    else:
        token = token_file.read_text().strip() if token_file else None
        app = LlumnixApp(LiveSource(AdminClient(url, token)))
    sys.stdout.write(asyncio.run(shoot(app, (width, height), wait_s)))


async def shoot(app: LlumnixApp, size: tuple[int, int], wait_s: float) -> str:
    """Return the app's screen as SVG after it has run for a while."""
    async with app.run_test(size=size) as pilot:
        await asyncio.sleep(wait_s)
        await pilot.pause()
        return app.export_screenshot(title="llumnix-tui")


if __name__ == "__main__":
    typer.run(main)
