"""The app: one store, one source, four screens, and the commands that operators confirm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Input

from llumnix_tui.client import AdminError
from llumnix_tui.commands import Command
from llumnix_tui.dialogs.detail import DetailDialog
from llumnix_tui.dialogs.drain_progress import DrainProgress
from llumnix_tui.render import questions
from llumnix_tui.render.keys import help_lines
from llumnix_tui.screens.base import DataScreen
from llumnix_tui.screens.cluster import ClusterScreen
from llumnix_tui.screens.events import EventsScreen
from llumnix_tui.screens.migrations import MigrationsScreen
from llumnix_tui.screens.requests import RequestsScreen
from llumnix_tui.source import Source
from llumnix_tui.store import Store

TICK_S = 0.1
AGE_EVERY_TICKS = 5
REFUSAL_S = 15.0
DONE_S = 3.0
SCREENS_GROUP = Binding.Group("screens", compact=True)


class LlumnixApp(App[None]):
    """llumnix-tui."""

    TITLE = "llumnix"
    CSS_PATH = "app.tcss"
    MODES: ClassVar[dict[str, str | Callable[[], DataScreen]]] = {  # type: ignore[assignment]
        "cluster": ClusterScreen,
        "requests": RequestsScreen,
        "migrations": MigrationsScreen,
        "events": EventsScreen,
    }
    DEFAULT_MODE = "cluster"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "go('cluster')", "cluster", group=SCREENS_GROUP, priority=True),
        Binding("2", "go('requests')", "requests", group=SCREENS_GROUP, priority=True),
        Binding("3", "go('migrations')", "migrations", group=SCREENS_GROUP, priority=True),
        Binding("4", "go('events')", "events", group=SCREENS_GROUP, priority=True),
        Binding("p", "pause", "pause"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(
        self, source: Source, *, read_only: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` gives Unix seconds; tests freeze it."""
        super().__init__()
        self.source = source
        self.store = Store(self._on_change)
        self.read_only = read_only
        self.paused = False
        self.clock = clock
        self._dirty = False
        self._ticks = 0

    def on_mount(self) -> None:
        """Begin to fetch and to show."""
        self.run_worker(self.source.run(self.store), name="source")
        self.run_worker(self._ask_role(), name="role")
        self.set_interval(TICK_S, self.tick)

    def tick(self) -> None:
        """Show what has changed, at most ten times a second; the header's age more rarely."""
        self._ticks += 1
        while self.store.warnings:
            self.notify(self.store.warnings.popleft(), severity="warning", markup=False)
        if self._dirty and not self.paused:
            self._dirty = False
            for screen in self.data_screens:
                screen.refresh_data()
        elif self._ticks % AGE_EVERY_TICKS == 0:
            self._refresh_headers()

    @property
    def data_screens(self) -> list[DataScreen | DrainProgress]:
        """What shows data at the moment: the topmost screen, and the one it lies upon if it is a dialog."""
        shown = [screen for screen in self.screen_stack if isinstance(screen, DataScreen)][-1:]
        return [*shown, *(screen for screen in self.screen_stack if isinstance(screen, DrainProgress))]

    def _refresh_headers(self) -> None:
        for screen in self.data_screens:
            if isinstance(screen, DataScreen):
                screen.refresh_header()

    # ---- commands ---------------------------------------------------------------------------------------

    async def carry_out(self, asked: Sequence[Command], *, announce: bool = True) -> bool:
        """Send each command once and show how it ended; whether any was taken. Refusals are always shown."""
        done: list[str] = []
        for command in asked:
            try:
                await self.source.send(command)
            except AdminError as error:
                self.notify(
                    str(error),
                    title=f"{command.what}: refused",
                    severity="error",
                    timeout=REFUSAL_S,
                    markup=False,
                )
                if error.code == "forbidden":
                    self.set_read_only()
            else:
                done.append(command.what)
        if done and announce:
            self.notify(questions.named(done), title="Done", timeout=DONE_S, markup=False)
        return bool(done)

    def set_read_only(self) -> None:
        """Hide and refuse all that changes the cluster."""
        self.read_only = True
        self.refresh_bindings()

    async def _ask_role(self) -> None:
        if not self.read_only and not await self.source.may_act():
            self.set_read_only()

    # ---- keys -------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave digits to inputs and dialogs."""
        if action == "go":
            return isinstance(self.screen, DataScreen) and not isinstance(self.focused, Input)
        return super().check_action(action, parameters)

    async def action_go(self, mode: str) -> None:
        """Show one of the four screens before the next key; from an instance, 1 leads back to the cluster."""
        if mode == self.current_mode:
            while len(self.screen_stack) > 1:
                self.pop_screen()
        await self.switch_mode(mode)

    def action_pause(self) -> None:
        """Hold the display still, or go on."""
        self.paused = not self.paused
        self._refresh_headers()

    def action_help(self) -> None:
        """Show the keys of this screen, and what the glyphs mean."""
        if isinstance(self.screen, DataScreen):
            self.push_screen(DetailDialog("Keys", help_lines(self.screen.keys(shown=False))))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Offer every visible key of this screen in the palette too."""
        yield from super().get_system_commands(screen)
        for active in screen.active_bindings.values():
            binding = active.binding
            if binding.show and active.enabled:
                run = partial(self.run_action, binding.action, active.node)
                yield SystemCommand(binding.description, f"key {self.get_key_display(binding)}", run)

    def _on_change(self) -> None:
        self._dirty = True
