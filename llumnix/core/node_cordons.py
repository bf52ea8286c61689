"""Cordons and drains of nodes: no instance is placed there, and those that are there go along."""

from __future__ import annotations

from collections.abc import Iterable

from llumnix.core import commands, drains, lifecycle
from llumnix.core.events import Action, Drain, DrainNode, InstancePlaced, InstanceState, Record
from llumnix.core.member import SERVING, Member
from llumnix.core.settings import SchedulerSettings

S = InstanceState


class NodeCordons:
    """Which nodes are cordoned. A node that nobody has heard of yet may be, too."""

    def __init__(self) -> None:
        self._nodes: set[str] = set()

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._nodes))

    def adopt(self, nodes: Iterable[str]) -> None:
        self._nodes.update(nodes)

    def forget(self, node: str) -> None:
        """It is dead: nothing is placed there anyway."""
        self._nodes.discard(node)

    def cordon(self, node: str, members: Iterable[Member], now: float) -> list[Action]:
        """Place nothing there any more; what is there takes no new requests, or comes up cordoned."""
        actions: list[Action] = []
        if node not in self._nodes:
            self._nodes.add(node)
            actions.append(_record("node.cordoned", node, "no instance is placed there"))
        for member in _there(node, members):
            if not member.cordoned:
                actions += commands.cordon(member, now)
                member.cordoned_with_node = True
        return actions

    def uncordon(
        self, node: str, members: Iterable[Member], settings: SchedulerSettings, now: float
    ) -> list[Action]:
        """Place instances there again, those too that wait for a place; what is there serves again."""
        actions: list[Action] = []
        if node in self._nodes:
            self._nodes.discard(node)
            actions.append(_record("node.uncordoned", node, "instances may be placed there again"))
        for member in members:
            if member.state is S.PENDING and node in member.run.not_on:
                actions += lifecycle.place_again(member, f"node {node} takes instances", settings, now)
        for member in _there(node, members):
            actions += commands.uncordon(member, now)
        return actions

    def drain(
        self, command: DrainNode, members: Iterable[Member], settings: SchedulerSettings, now: float
    ) -> list[Action]:
        """Cordon the node and empty what serves there; what does not serve yet starts elsewhere."""
        commands.check_timeout(command.timeout_s)
        actions = self.cordon(command.node, members, now)
        for member in _there(command.node, members):
            if member.state is S.STARTING:
                actions += lifecycle.place_again(member, f"node {command.node} is drained", settings, now)
            elif member.state is not S.DRAINED:
                order = Drain(member.instance, command.timeout_s, abort_left=command.abort_left)
                actions += drains.begin(member, order, settings, now)
        return actions

    def placed(
        self, member: Member, event: InstancePlaced, settings: SchedulerSettings, now: float
    ) -> list[Action]:
        """Ray found a place; one that was asked for before its node was cordoned is placed again."""
        actions = lifecycle.placed(member, event, now)
        if member.state is S.STARTING and member.run.node in self._nodes and actions:
            actions += lifecycle.place_again(member, f"node {event.node} is cordoned", settings, now)
        return actions


def _there(node: str, members: Iterable[Member]) -> list[Member]:
    """Whose process is on the node, and is meant to go on."""
    return [m for m in members if m.run.node == node and (m.state in SERVING or m.state is S.STARTING)]


def _record(kind: str, node: str, message: str) -> Record:
    return Record(kind, "info", f"node/{node}", message)
