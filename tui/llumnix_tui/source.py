"""Where the data come from: the admin API, polled and streamed, or a recording."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Final, Protocol

from llumnix_tui.client import AdminClient, AdminError, Interest
from llumnix_tui.commands import Command
from llumnix_tui.recording import Recorder, RecordingError, frames
from llumnix_tui.store import Store

POLL_S: Final = 0.5
# A round that took long is followed by a longer pause: polling takes at most a quarter of the time.
REST_PER_ROUND: Final = 3.0
RETRY_S: Final = 1.0


class Source(Protocol):
    """Fills a store until it is cancelled, and takes commands."""

    interest: Interest
    # Named in the header, such as the URL.
    name: str

    async def run(self, store: Store) -> None:
        """Keep the store up to date; failures go into the store."""
        ...

    def wake(self) -> None:
        """Fetch soon, as something has happened or somebody looks at something else."""
        ...

    async def may_act(self) -> bool:
        """Whether commands have a chance: no for a viewer's token and for recordings."""
        ...

    async def send(self, command: Command) -> None:
        """Send a command once; raises AdminError with the server's reason."""
        ...


class LiveSource:
    """Polls snapshots in one task and follows the journal in another, which makes the first one hurry."""

    def __init__(self, client: AdminClient, recorder: Recorder | None = None) -> None:
        self.interest = Interest()
        self.name = client.url
        self._client = client
        self._recorder = recorder
        self._woken = asyncio.Event()
        self._following = False

    async def run(self, store: Store) -> None:
        """Poll and follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll(store))
            tasks.create_task(self._follow(store))

    def wake(self) -> None:
        """End the pause between two rounds."""
        self._woken.set()

    async def may_act(self) -> bool:
        """Ask the daemon for the token's role; one that does not answer is asked by the first command."""
        try:
            return await self._client.role() != "viewer"
        except AdminError:
            return True

    async def send(self, command: Command) -> None:
        """Send a command and fetch what it changed."""
        try:
            await self._client.send(command)
        finally:
            self.wake()

    async def close(self) -> None:
        """Close connections and the recording."""
        await self._client.close()
        if self._recorder is not None:
            self._recorder.close()

    async def _poll(self, store: Store) -> None:
        while True:
            began = time.monotonic()
            await self._round(store)
            # Also a poll that is woken all the time leaves the daemon and the keys theirs.
            rest = max(REST_PER_ROUND * (time.monotonic() - began), POLL_S / 2)
            await asyncio.sleep(rest)
            if store.connection.state == "lost":
                await asyncio.sleep(RETRY_S)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), max(POLL_S - rest, 0))
            self._woken.clear()

    async def _round(self, store: Store) -> None:
        try:
            snapshot = await self._client.snapshot(self.interest)
            if not self._following and store.last_seq is not None:
                store.add_events(await self._client.events_since(store.last_seq))
        except AdminError as error:
            store.lost(str(error), refused=error.code in ("unauthorized", "forbidden"))
            return
        store.take(snapshot)
        if self._recorder is not None:
            try:
                self._recorder.write(snapshot, store)
            except RecordingError as error:
                self._recorder = None
                store.warnings.append(f"the recording has ended: {error}")

    async def _follow(self, store: Store) -> None:
        """Keep a stream open; while there is none, the poll fetches events too."""
        while True:
            try:
                if store.last_seq is None:
                    store.add_events(await self._client.latest_events())
                since = store.last_seq or 0
                async for event in self._client.stream(since):
                    self._following = True
                    if event.seq <= since:
                        store.forget_events()
                    since = event.seq
                    store.add_events((event,))
                    self.wake()
            except AdminError:
                pass  # the poll meets the same failure and shows it
            self._following = False
            await asyncio.sleep(RETRY_S)


class ReplaySource:
    """Plays a recording at the speed at which it was made."""

    def __init__(self, path: Path) -> None:
        self.interest = Interest()
        self.name = f"replay of {path}"
        self._frames = frames(path)

    async def run(self, store: Store) -> None:
        """Show one frame after the other."""
        previous: float | None = None
        try:
            for frame in self._frames:
                at = frame.snapshot.taken_at
                if previous is not None:
                    await asyncio.sleep(max(at - previous, 0))
                previous = at
                store.add_events(frame.events)
                store.take(frame.snapshot, "replay")
        except RecordingError as error:
            store.warnings.append(str(error))
        store.ended()

    def wake(self) -> None:
        """Nothing to hurry."""

    async def may_act(self) -> bool:
        """A recording takes no commands."""
        return False

    async def send(self, command: Command) -> None:
        """Refuse."""
        raise AdminError(f"{command.what}: this is a recording, which takes no commands", "replay")
