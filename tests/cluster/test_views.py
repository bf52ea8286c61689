"""What the admin API reads of nodes and counts, of a cluster that is made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from llumnix.admin import schema
from llumnix.cluster import nodes
from llumnix.cluster.views import ClusterViews
from llumnix.config import parse_config
from llumnix.wire import RequestRow


def node(*, head: bool, safe: bool, cordoned: bool = True) -> schema.Node:
    facts = nodes.RayNodeFacts("n0", "10.0.0.1", alive=True, head=head, cpus=8.0, gpus=0.0)
    state: Any = "drained" if safe else "draining"
    there = [schema.Instance(id="i0", node="n0", state=state, safe_to_remove=safe)]
    return nodes._view(facts, there, cordoned)


def test_a_drained_head_node_says_why_it_is_not_safe_to_remove() -> None:
    assert node(head=True, safe=True).reason == "the head node: the cluster ends with it"
    assert not node(head=True, safe=True).safe_to_remove
    assert node(head=True, safe=False).reason == node(head=True, safe=True, cordoned=False).reason == ""
    assert node(head=False, safe=True).safe_to_remove and node(head=False, safe=True).reason == ""


def test_held_requests_are_counted_by_class() -> None:
    config = parse_config({"model": {"path": "builtin:tiny"}})
    (first, high), (second, low) = list(config.priorities.items())[:2]

    def row(name: str, priority: int) -> RequestRow:
        return cast(RequestRow, SimpleNamespace(request_id=name, api_server=0, priority=priority))

    held = {0: (row("a", high.engine_priority), row("b", low.engine_priority)), 1: (row("c", 77),)}
    manager: Any = SimpleNamespace(
        config=config,
        rows={1: (row("d", high.engine_priority),)},
        held=held,
        scheduler=SimpleNamespace(instances=list, cordoned_nodes=tuple),
        api_servers=SimpleNamespace(states=()),
        migrations=SimpleNamespace(moving=set, num_active=int),
    )
    counts = ClusterViews(manager, nodes.NodeList(), "http://h", list)._counts([])
    assert counts.requests_held == {first: 1, second: 1, "77": 1}
    assert counts.requests_queued == 3
