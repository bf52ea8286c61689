"""What the admin API reads of the cluster and does to it (llumnix.admin.control.ClusterControl)."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import TypeVar

from llumnix.admin import schema
from llumnix.cluster.node_logs import own_node
from llumnix.cluster.request_ids import internal_id, response_id
from llumnix.cluster.views import HELD, ClusterViews
from llumnix.core.events import (
    AddInstances,
    CommandRefused,
    Cordon,
    CordonNode,
    Drain,
    DrainNode,
    Event,
    InstanceState,
    ScaleTo,
    TerminationNotice,
    Uncordon,
    UncordonNode,
    UnknownInstance,
)
from llumnix.core.member import InstanceView
from llumnix.errors import ConfigError, LlumnixError, RefusedError, UnknownTargetError
from llumnix.wire import RequestRow

Answer = TypeVar("Answer")
Found = list[tuple[int, RequestRow]]
"""The rows of one request, all of its children, each with the uid of where it is."""


class LiveControl(ClusterViews):
    """Implements ClusterControl over the manager's memory."""

    def own_node(self) -> str:
        return own_node()

    async def log_names(self, node_id: str) -> tuple[str, ...]:
        return await self._manager.node_logs.names(node_id)

    async def log_tail(self, node_id: str, name: str, num_lines: int) -> tuple[str, ...]:
        return await self._manager.node_logs.tail(node_id, name, num_lines)

    async def scale(self, count: int, actor: str) -> None:
        self._do(ScaleTo(count))

    async def add_instances(self, count: int, actor: str) -> list[str]:
        before = {view.instance for view in self._manager.scheduler.instances()}
        self._do(AddInstances(count))
        return [v.instance for v in self._manager.scheduler.instances() if v.instance not in before]

    async def remove_instance(self, instance_id: str, actor: str) -> None:
        self._do(Drain(instance_id, math.inf, remove=True))

    async def cordon(self, kind: schema.TargetKind, target_id: str, actor: str) -> None:
        self._do(Cordon(target_id) if kind == "instance" else CordonNode(self._node(target_id).id))
        await self._manager.heard_by_api_servers()

    async def uncordon(self, kind: schema.TargetKind, target_id: str, actor: str) -> None:
        self._do(Uncordon(target_id) if kind == "instance" else UncordonNode(self._node(target_id).id))
        await self._manager.heard_by_api_servers()

    async def drain(
        self, kind: schema.TargetKind, target_id: str, options: schema.DrainOptions, actor: str
    ) -> None:
        drain = _drain(target_id, options)
        if kind == "node":
            self._do(DrainNode(self._node(target_id).id, drain.timeout_s, drain.abort_left))
        else:
            self._do(drain)

    async def restart(self, instance_id: str, options: schema.DrainOptions, actor: str) -> None:
        self._do(_drain(instance_id, options, restart=True))

    async def terminate(self, kind: schema.TargetKind, target_id: str, deadline_s: float, actor: str) -> None:
        if kind == "instance":
            self._do(TerminationNotice(target_id, deadline_s))
            return
        node = self._node(target_id)
        self._do(CordonNode(node.id))  # what replaces its instances is placed elsewhere
        self._do_all(TerminationNotice(instance, deadline_s) for instance in node.instances)

    async def set_priority(self, request_id: str, class_name: str, actor: str) -> schema.Request:
        classes = self._manager.config.priorities
        if class_name not in classes:
            raise ConfigError(f"priority is {class_name!r}, expected one of {', '.join(classes)}")
        wanted = classes[class_name].engine_priority

        async def change(found: Found) -> schema.Request:
            for uid, row in found:
                if uid == HELD:
                    await self._manager.commands.set_held_priority(row.api_server, row.request_id, wanted)
                else:
                    await self._manager.commands.set_priority(uid, row.request_id, wanted)
            uid, row = found[0]
            return self._request(uid, row, time.time()).model_copy(update={"priority": class_name})

        return await self._carry_out(request_id, change)

    async def abort_request(self, request_id: str, actor: str) -> None:
        reason = f"aborted by operator {actor}"
        commands = self._manager.commands

        async def abort(found: Found) -> None:
            refusals: list[str] = []
            for _, row in found:
                try:
                    await commands.abort_request(row.api_server, internal_id(row.request_id), reason)
                except RefusedError as refused:
                    # A child of n > 1 ended with its siblings.
                    refusals.append(str(refused))
            if len(refusals) == len(found):
                raise RefusedError(refusals[0])

        await self._carry_out(request_id, abort)

    async def migrate(self, request_id: str, to: str | None, actor: str) -> schema.MigrationsBegun:
        async def move(found: Found) -> schema.MigrationsBegun:
            sources = {uid for uid, _ in found if uid != HELD}
            if not sources:
                raise RefusedError(_held_by(found[0][1]))
            target = self._choose_target(sources) if to is None else self._view(to)
            if target.state is not InstanceState.RUNNING:
                raise RefusedError(f"instance {target.instance} is {target.state}: it takes no requests")
            return await self._begin_moves(found, target.uid, f"asked for by operator {actor}")

        if request_id not in {internal_id(row.request_id) for _, row in self._find(request_id)}:
            await self._manager.ask_for_rows()  # or children that have just come would stay
        return await self._carry_out(request_id, move)

    async def _begin_moves(self, found: Found, target: int, why: str) -> schema.MigrationsBegun:
        """Of each instance's rows one by one; raises RefusedError where none begins."""
        refused = {internal_id(row.request_id): _held_by(row) for uid, row in found if uid == HELD}
        begun: list[str] = []
        following: list[str] = []
        for source, rows in _by_instance(found).items():
            while rows:
                first = rows.pop(0)
                try:
                    begun.append(await self._manager.migrate(source, first, target, why, rows))
                except RefusedError as refusal:
                    refused[internal_id(first)] = str(refusal)
                    continue
                following += map(internal_id, rows)
                break
        if not begun:
            raise RefusedError(next(reversed(refused.values())))
        return schema.MigrationsBegun(
            id=begun[0], migrations=tuple(begun), following=tuple(following), refused=refused
        )

    def _choose_target(self, sources: Collection[int]) -> InstanceView:
        """The freest instance that takes requests: one without any of these, if there is one."""
        views = self._manager.scheduler.instances()
        able = [v for v in views if v.state is InstanceState.RUNNING]
        others = [v for v in able if v.uid not in sources]
        if not others and len(sources) > 1:
            others = [v for v in able if v.uid in sources]
        if not others:
            raise RefusedError("no other instance takes requests")
        return max(others, key=lambda view: view.freeness or 0.0)

    def _view(self, instance: str) -> InstanceView:
        try:
            return self._manager.scheduler.instance(instance)
        except UnknownInstance as unknown:
            raise UnknownTargetError(str(unknown)) from None

    def _node(self, node_id: str) -> schema.Node:
        node = next((n for n in self.nodes() if n.id == node_id), None)
        if node is None:
            raise UnknownTargetError(f"there is no node {node_id}")
        return node

    async def _carry_out(self, request_id: str, command: Callable[[Found], Awaitable[Answer]]) -> Answer:
        """A command to a request where it was last seen, and if it is not there, to where it is.

        What instances and API servers tell is up to half a second old: it may have come or moved since.
        """
        found = self._find(request_id)
        refusal: LlumnixError = UnknownTargetError(f"there is no unfinished request {request_id}")
        if found:
            try:
                return await command(found)
            except RefusedError as refused:
                refusal = refused
        await self._manager.ask_for_rows()
        again = self._find(request_id)
        if not again or _places(again) == _places(found):
            raise refusal
        return await command(again)

    def _find(self, request_id: str) -> Found:
        return [
            (uid, row)
            for uid, row in self._rows()
            if request_id in (internal_id(row.request_id), response_id(row.request_id))
        ]

    def _do_all(self, commands: Iterable[Event]) -> None:
        """The same command on several instances; one that refuses does not keep the others from it."""
        refusals: list[RefusedError] = []
        for command in commands:
            try:
                self._do(command)
            except RefusedError as refused:
                refusals.append(refused)
        if refusals:
            raise RefusedError("; ".join(str(refused) for refused in refusals))

    def _do(self, command: Event) -> None:
        try:
            self._manager.handle(command)
        except UnknownInstance as unknown:
            raise UnknownTargetError(str(unknown)) from None
        except CommandRefused as refused:
            raise RefusedError(str(refused)) from None


def _by_instance(found: Found) -> dict[int, list[str]]:
    """Engine-side ids by the instance that has them; without those that none has."""
    places: dict[int, list[str]] = {}
    for uid, row in found:
        if uid != HELD:
            places.setdefault(uid, []).append(row.request_id)
    return places


def _held_by(row: RequestRow) -> str:
    return f"api{row.api_server} holds the request until an instance has room for it"


def _places(found: Found) -> set[tuple[int, str]]:
    return {(uid, row.request_id) for uid, row in found}


def _drain(instance: str, options: schema.DrainOptions, *, restart: bool = False) -> Drain:
    limit_s = math.inf if options.timeout_s is None else options.timeout_s
    return Drain(instance, limit_s, restart=restart, abort_left=options.on_timeout == "abort")
