"""The nodes as the admin API shows them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import ray

from llumnix.admin import schema
from llumnix.cluster import nodes
from llumnix.cluster.nodes import NodeList, RayNodeFacts

NODE = RayNodeFacts("n1", "10.0.0.1", alive=True, head=False, cpus=4.0, gpus=0.0)


async def test_ray_that_does_not_answer_for_a_while_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [ray.exceptions.RpcError("unavailable"), RuntimeError("cannot connect")]

    def ask() -> tuple[RayNodeFacts, ...]:
        if failures:
            raise failures.pop()
        return (NODE,)

    monkeypatch.setattr(nodes, "REFRESH_S", 0.01)
    monkeypatch.setattr(nodes, "_ask_ray", ask)
    known = NodeList()
    refresh = asyncio.create_task(known.keep_fresh())
    async with asyncio.timeout(5):
        while not known.views([]):
            await asyncio.sleep(0.01)
    refresh.cancel()
    await asyncio.gather(refresh, return_exceptions=True)
    assert [r.levelno for r in caplog.records if "does not tell its nodes" in r.message] == [logging.WARNING]


@pytest.mark.parametrize(
    ("states", "cordoned", "state", "safe"),
    [
        ((), False, "ready", False),
        ((), True, "drained", True),
        (("running",), True, "cordoned", False),
        (("cordoned",), False, "cordoned", False),
        (("cordoned", "starting"), True, "cordoned", False),
        (("draining", "stopping", "failed"), True, "draining", False),
        (("drained", "failed", "restarting"), True, "drained", True),
        (("drained",), False, "drained", False),
    ],
)
async def test_a_node_is_safe_to_remove_once_nothing_is_or_comes_there(
    monkeypatch: pytest.MonkeyPatch,
    states: tuple[schema.InstanceState, ...],
    cordoned: bool,
    state: schema.NodeState,
    safe: bool,
) -> None:
    (view,) = (await looked_at(monkeypatch, NODE)).views(
        [instance(f"i{k}", s) for k, s in enumerate(states)], ("n1",) if cordoned else ()
    )
    assert (view.state, view.safe_to_remove) == (state, safe)


async def test_dead_nodes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    await looked_at(monkeypatch, NODE, replace(NODE, node_id="n2", alive=False), tell_dead=told.append)
    assert set(told) == {"n2"}


async def looked_at(
    monkeypatch: pytest.MonkeyPatch, *facts: RayNodeFacts, tell_dead: Callable[[str], None] = print
) -> NodeList:
    """A list that has asked Ray once."""
    monkeypatch.setattr(nodes, "_ask_ray", lambda: facts)
    known = NodeList(tell_dead)
    refresh = asyncio.create_task(known.keep_fresh())
    async with asyncio.timeout(5):
        while not known.views([]):
            await asyncio.sleep(0.01)
    refresh.cancel()
    await asyncio.gather(refresh, return_exceptions=True)
    return known


def instance(name: str, state: schema.InstanceState) -> schema.Instance:
    return schema.Instance(id=name, state=state, node="n1", safe_to_remove=state in ("drained", "dead"))
