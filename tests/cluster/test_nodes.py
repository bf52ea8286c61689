"""The nodes as the admin API shows them."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest
import ray

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
    with contextlib.suppress(asyncio.CancelledError):
        await refresh
    assert [r.levelno for r in caplog.records if "does not tell its nodes" in r.message] == [logging.WARNING]
