"""A cluster serves, and moves what runs: the short way through all of it."""

from __future__ import annotations

import asyncio
import random

from tests.e2e.running import RunningCluster
from tests.e2e.test_migration import migrations, move_at_random
from tests.e2e.workload import answers, bodies


def test_chat_is_answered_streamed_and_not(cluster: RunningCluster) -> None:
    client = cluster.client()
    messages = [{"role": "user", "content": "Hello"}]
    whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=16, temperature=0)
    parts = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=16, temperature=0, stream=True
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in parts if chunk.choices)
    assert whole.choices[0].message.content == streamed


async def test_moved_requests_answer_as_unmoved_ones(cluster: RunningCluster) -> None:
    requests = bodies(8, max_tokens=1000)  # long enough to be seen by the admin API and moved
    unmoved = await answers(cluster, requests)
    assert all(isinstance(got, tuple) for got in unmoved), unmoved
    stop = asyncio.Event()
    mover = asyncio.create_task(move_at_random(cluster, stop, random.Random(7)))
    moved = await answers(cluster, requests)
    stop.set()
    await mover
    assert migrations(cluster, "committed")
    assert moved == unmoved
