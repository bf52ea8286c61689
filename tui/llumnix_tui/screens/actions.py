"""The actions of operators: which keys, which dialog first, and which commands then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType

from llumnix.admin.schema import Request
from llumnix_tui import commands
from llumnix_tui.commands import Command, Target
from llumnix_tui.dialogs.base import ConfirmDialog
from llumnix_tui.dialogs.drain_progress import DrainProgress
from llumnix_tui.dialogs.forms import ChoiceDialog, CountDialog, DrainDialog
from llumnix_tui.render import questions
from llumnix_tui.screens.base import DataScreen

# The names of all that change the cluster: hidden and refused where it may only be looked at.
CHANGING = frozenset(
    {"cordon", "uncordon", "drain", "remove_instances", "add_instances", "migrate", "set_priority", "abort"}
)


class ActionScreen(DataScreen):
    """A screen with actions; in read-only mode it has none."""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Hide and refuse what changes the cluster where it may only be looked at."""
        if action in CHANGING and self.llumnix.read_only:
            return False
        return super().check_action(action, parameters)

    def nothing_shown(self) -> None:
        """Say why an action does nothing, where rows are marked and none of them is shown."""
        table = self.table()
        if table is not None and table.marked:
            self.refuse("the selected rows are hidden by the filter: nothing is done (Esc drops the filter)")

    def refuse(self, why: str) -> None:
        """Say why an action does nothing."""
        self.app.notify(why, severity="warning", markup=False)

    async def confirm(self, asked: Sequence[Command], consequence: Sequence[str], verb: str) -> bool:
        """Ask whether to do these commands, and do them."""
        if not asked:
            self.nothing_shown()
            return False
        first = asked[0].what
        title = f"{first[0].upper()}{first[1:]}?" if len(asked) == 1 else f"{verb} {len(asked)}?"
        if not await self.app.push_screen_wait(ConfirmDialog(title, consequence, verb)):
            return False
        return await self.carry_out(asked)

    async def carry_out(self, asked: Sequence[Command], *, announce: bool = True) -> bool:
        """Do these commands, whose targets are no longer marked then; whether any was taken."""
        table = self.table()
        if table is not None:
            table.clear_marks()
        return await self.llumnix.carry_out(asked, announce=announce)


class TargetActions(ActionScreen):
    """Actions on instances and nodes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "cordon", "cordon"),
        Binding("u", "uncordon", "uncordon"),
        Binding("d", "drain", "drain"),
    ]

    def targets(self) -> list[Target]:
        """Return the instances and nodes that are meant."""
        raise NotImplementedError

    @work
    async def action_cordon(self) -> None:
        """Send the targets no new requests."""
        targets = self.targets()
        text = questions.cordon(targets)
        await self.confirm([commands.cordon(target) for target in targets], text, "Cordon")

    @work
    async def action_uncordon(self) -> None:
        """Send the targets requests again."""
        targets = self.targets()
        text = questions.uncordon(targets)
        await self.confirm([commands.uncordon(target) for target in targets], text, "Uncordon")

    @work
    async def action_drain(self) -> None:
        """Ask for options, drain, and show how it goes."""
        targets, snapshot = self.targets(), self.llumnix.store.snapshot
        if not targets or snapshot is None:
            self.nothing_shown()
            return
        title = f"Drain {', '.join(map(str, targets))}?"
        options = await self.app.push_screen_wait(
            DrainDialog(title, questions.drain(targets, snapshot), "Drain")
        )
        if options is None:
            return
        began_at = self.llumnix.clock()
        asked = [commands.drain(target, options.timeout_s, options.on_timeout) for target in targets]
        if await self.carry_out(asked, announce=False):
            self.app.push_screen(DrainProgress(targets, self.llumnix.store, began_at))


class ScaleActions(TargetActions):
    """Adding and removing instances too."""

    SCALE: ClassVar[Binding.Group] = Binding.Group("scale", compact=True)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus", "add_instances", "add instances", key_display="+", group=SCALE),
        Binding("minus", "remove_instances", "remove instances", key_display="-", group=SCALE),
    ]

    @work
    async def action_remove_instances(self) -> None:
        """Drain and end the chosen instances."""
        snapshot = self.llumnix.store.snapshot
        targets = self.targets()
        ids = [target.id for target in targets if target.kind == "instance"]
        if targets and not ids:
            self.refuse("a node cannot be removed here: select its instances, or drain it with d")
        elif snapshot is not None:
            text = questions.remove(ids, snapshot)
            await self.confirm([commands.remove(instance_id) for instance_id in ids], text, "Remove")

    @work
    async def action_add_instances(self) -> None:
        """Start further instances."""
        snapshot = self.llumnix.store.snapshot
        if snapshot is None:
            return
        dialog = CountDialog("Add instances?", questions.add(snapshot), "Add")
        count = await self.app.push_screen_wait(dialog)
        if count is not None:
            await self.carry_out([commands.add_instances(count)])


class RequestActions(ActionScreen):
    """Actions on requests."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "migrate", "migrate"),
        Binding("r", "set_priority", "priority"),
        Binding("x", "abort", "abort"),
    ]

    def chosen_requests(self) -> list[Request]:
        """Return the requests that are meant."""
        raise NotImplementedError

    @work
    async def action_migrate(self) -> None:
        """Choose a target by its predicted freeness, and move the requests there."""
        snapshot, chosen = self.llumnix.store.snapshot, self.chosen_requests()
        if snapshot is None or not chosen:
            self.nothing_shown()
            return
        dialog = ChoiceDialog(
            f"Migrate {questions.some(chosen)}?",
            questions.migrate(chosen),
            "Migrate",
            questions.migration_targets(chosen, snapshot),
        )
        to = await self.app.push_screen_wait(dialog)
        if to is not None:
            await self.carry_out([commands.migrate(request.id, to or None) for request in chosen])

    @work
    async def action_set_priority(self) -> None:
        """Choose another priority class."""
        snapshot, chosen = self.llumnix.store.snapshot, self.chosen_requests()
        if snapshot is None or not chosen or not snapshot.cluster.priorities:
            self.nothing_shown()
            return
        dialog = ChoiceDialog(
            f"Set the priority of {questions.some(chosen)}?",
            questions.set_priority(chosen),
            "Set priority",
            questions.priority_classes(snapshot.cluster),
        )
        name = await self.app.push_screen_wait(dialog)
        if name is not None:
            await self.carry_out([commands.set_priority(request.id, name) for request in chosen])

    @work
    async def action_abort(self) -> None:
        """End the requests."""
        chosen = self.chosen_requests()
        asked = [commands.abort(request.id) for request in chosen]
        await self.confirm(asked, questions.abort(chosen), "Abort")
