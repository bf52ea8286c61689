"""Where an operator's move goes, and what its answer says, with children on several instances."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from llumnix.admin import schema
from llumnix.cluster import nodes
from llumnix.cluster.control import LiveControl
from llumnix.core.events import InstanceState
from llumnix.errors import RefusedError

CHILDREN = [f"{n}_chatcmpl-a-12345678" for n in range(3)]


class Cluster:
    """What LiveControl asks of the manager: instances i1 to i3, and rows by the uid of where they are."""

    def __init__(self, rows: dict[int, list[str]], held: list[str] | None = None) -> None:
        self.rows = {uid: tuple(map(row, ids)) for uid, ids in rows.items()}
        self.held = {0: tuple(map(row, held or []))}
        self.config = SimpleNamespace(priorities={})
        self.refusals: dict[str, str] = {}
        self.orders: list[tuple[int, str, int, list[str]]] = []
        views = [
            SimpleNamespace(instance=f"i{uid}", uid=uid, state=InstanceState.RUNNING, freeness=float(uid))
            for uid in (1, 2, 3)
        ]
        self.scheduler = SimpleNamespace(
            instances=lambda: views, instance=lambda name: next(v for v in views if v.instance == name)
        )

    async def ask_for_rows(self) -> None:
        """They are as of now."""

    async def migrate(self, source: int, request: str, target: int, why: str, then: list[str]) -> str:
        if request in self.refusals:
            raise RefusedError(self.refusals[request])
        self.orders.append((source, request, target, list(then)))
        return f"m{len(self.orders)}"

    def move(self, request: str, to: str | None = None) -> schema.MigrationsBegun:
        manager: Any = self
        control = LiveControl(manager, nodes.NodeList(), "http://h", list)
        return asyncio.run(control.migrate(request, to, "alice"))


def row(request_id: str) -> Any:
    return SimpleNamespace(request_id=f"{request_id}@0.0", api_server=0)


def on_engine(request_id: str) -> str:
    return f"{request_id}@0.0"


def test_a_child_is_moved_alone_and_its_response_with_all_children_of_every_instance() -> None:
    a, b, c = CHILDREN
    cluster = Cluster({1: [a, b], 2: [c]})
    begun = cluster.move(b)
    assert begun == schema.MigrationsBegun(id="m1", migrations=("m1",))
    assert cluster.orders == [(1, on_engine(b), 3, [])]
    begun = cluster.move("chatcmpl-a")
    assert begun == schema.MigrationsBegun(id="m2", migrations=("m2", "m3"), following=(b,))
    assert cluster.orders[1:] == [(1, on_engine(a), 3, [on_engine(b)]), (2, on_engine(c), 3, [])]


def test_a_child_that_stays_keeps_no_other_from_leaving() -> None:
    a, b, c = CHILDREN
    cluster = Cluster({1: [a, b]}, held=[c])
    cluster.refusals = {on_engine(a): "it is being moved"}
    begun = cluster.move("chatcmpl-a", "i2")
    assert (begun.id, begun.migrations, begun.following) == ("m1", ("m1",), ())
    assert cluster.orders == [(1, on_engine(b), 2, [])]
    assert begun.refused[a] == "it is being moved" and "api0 holds" in begun.refused[c]


def test_it_is_refused_where_none_can_leave() -> None:
    cluster = Cluster({1: CHILDREN})
    cluster.refusals = dict.fromkeys(map(on_engine, CHILDREN), "no way")
    with pytest.raises(RefusedError, match="no way"):
        cluster.move("chatcmpl-a")
    with pytest.raises(RefusedError, match="api0 holds"):
        Cluster({}, held=CHILDREN).move("chatcmpl-a")


def test_without_an_instance_that_has_none_of_them_they_gather_on_the_freest() -> None:
    a, b, c = CHILDREN
    cluster = Cluster({1: [a], 2: [b], 3: [c]})
    cluster.refusals = {on_engine(c): "at that instance already"}
    assert cluster.move("chatcmpl-a").refused == {c: "at that instance already"}
    assert [(source, target) for source, _, target, _ in cluster.orders] == [(1, 3), (2, 3)]
