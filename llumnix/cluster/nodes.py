"""The nodes of the Ray cluster, as the admin API shows them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import ray

from llumnix.admin import schema
from llumnix.log import get_logger

logger = get_logger(__name__)

REFRESH_S = 2.0
HEAD = "the head node: the cluster ends with it"
_WITHOUT_PROCESS = ("restarting", "failed", "dead")
_LEAVING = {"draining", "drained", "stopping"}


@dataclass(frozen=True, slots=True)
class RayNodeFacts:
    """What Ray says of one node."""

    node_id: str
    address: str
    alive: bool
    head: bool
    cpus: float
    gpus: float


class NodeList:
    """The nodes as Ray last told them; read from memory, refreshed beside the event loop."""

    def __init__(self, tell_dead: Callable[[str], None] = lambda node: None) -> None:
        """`tell_dead(node)` is called for every dead node, again and again."""
        self._tell_dead = tell_dead
        self._facts: tuple[RayNodeFacts, ...] = ()

    async def keep_fresh(self) -> None:
        """Ask Ray again every REFRESH_S until cancelled; what it does not answer stays as it was."""
        answers = True
        while True:
            try:
                self._facts = await asyncio.to_thread(_ask_ray)
                answers = True
            except (ray.exceptions.RayError, RuntimeError) as error:  # the latter where it cannot connect
                if answers:
                    logger.warning("Ray does not tell its nodes, their last state is shown: %s", error)
                answers = False
            for facts in self._facts:
                if not facts.alive:
                    self._tell_dead(facts.node_id)
            await asyncio.sleep(REFRESH_S)

    def views(
        self, instances: Sequence[schema.Instance], cordoned: Collection[str] = ()
    ) -> list[schema.Node]:
        """Living nodes, and dead ones that instances still name."""
        by_node: dict[str, list[schema.Instance]] = {}
        for instance in instances:
            if instance.node is not None and instance.state != "dead":
                by_node.setdefault(instance.node, []).append(instance)
        return [
            _view(facts, by_node.get(facts.node_id, []), facts.node_id in cordoned)
            for facts in self._facts
            if facts.alive or facts.node_id in by_node
        ]


def _ask_ray() -> tuple[RayNodeFacts, ...]:
    facts = []
    for node in ray.nodes():
        resources = node["Resources"]
        facts.append(
            RayNodeFacts(
                node_id=node["NodeID"],
                address=node["NodeManagerAddress"],
                alive=node["Alive"],
                head="node:__internal_head__" in resources,
                cpus=resources.get("CPU", 0.0),
                gpus=resources.get("GPU", 0.0),
            )
        )
    return tuple(facts)


def _view(facts: RayNodeFacts, instances: list[schema.Instance], cordoned: bool) -> schema.Node:
    blockers = tuple(f"{i.id}: {b}" for i in instances for b in i.blockers)
    there = [i for i in instances if i.state not in _WITHOUT_PROCESS]
    return schema.Node(
        id=facts.node_id,
        address=facts.address,
        state=_state(facts, {i.state for i in there}, cordoned),
        reason=HEAD if facts.head and cordoned and all(i.safe_to_remove for i in there) else "",
        head=facts.head,
        cpus=facts.cpus,
        gpus=facts.gpus,
        instances=tuple(i.id for i in instances),
        blockers=blockers,
        # An instance may be placed at any time on a node that is not cordoned.
        safe_to_remove=cordoned and not facts.head and all(i.safe_to_remove for i in there),
    )


def _state(facts: RayNodeFacts, states: set[schema.InstanceState], cordoned: bool) -> schema.NodeState:
    """`states`: of the instances whose processes are there."""
    if not facts.alive:
        return "dead"
    if cordoned and states <= _LEAVING:
        return "drained" if states <= {"drained"} else "draining"
    if cordoned:
        return "cordoned"
    if "draining" in states and states <= {"draining", "drained"}:
        return "draining"
    if states == {"drained"}:
        return "drained"
    if states and states <= {"cordoned", "drained", "draining"}:
        return "cordoned"
    return "ready"
