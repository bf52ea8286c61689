"""Live migration on real engines: what clients get does not depend on it."""

from __future__ import annotations

import asyncio
import random
import re

import pytest

from tests.e2e.moves import move, move_at_random
from tests.e2e.running import RunningCluster, wait_for, wait_until_idle
from tests.e2e.streams import Stream, row_of, streams_on
from tests.e2e.workload import answers, bodies


async def test_moved_requests_answer_token_for_token_as_unmoved_ones(cluster: RunningCluster) -> None:
    requests = bodies(24, max_tokens=800)
    unmoved = await answers(cluster, requests)
    before = len(cluster.migrations("committed"))
    stop = asyncio.Event()
    mover = asyncio.create_task(move_at_random(cluster, stop, random.Random(1)))
    moved = await answers(cluster, requests)
    stop.set()
    await mover
    assert len(cluster.migrations("committed")) > before
    assert all(isinstance(got, tuple) for got in unmoved), unmoved
    assert moved == unmoved


def test_a_request_is_moved_by_hand_and_the_api_tells_how(cluster: RunningCluster) -> None:
    with streams_on(cluster, "instance", ["i0"]) as streams:
        request = row_of(cluster, streams["i0"])["id"]
        moved = move(cluster, streams["i0"], "i1")
        streams["i0"].assert_goes_on()
        assert (moved["source"], moved["target"]) == ("i0", "i1")
        assert moved["request"] == request and "operator admin" in moved["reason"]
        assert moved["bytes"] > 0 and moved["downtime_ms"] > 0
        assert row_of(cluster, streams["i0"])["migrations"] == 1
    assert [e for e in cluster.events("migration.committed") if request in e["target"]]


def test_a_request_is_found_as_soon_as_its_client_has_a_token_and_as_soon_as_it_has_moved(
    cluster: RunningCluster,
) -> None:
    for _ in range(3):
        stream = Stream(cluster, 7500)
        try:
            wait_for(lambda stream=stream: stream.id, 60, "its first token")
            for name in ("high", "normal"):
                changed = cluster.admin("PATCH", f"/v1/requests/{stream.id}", json={"priority": name})
                assert changed["priority"] == name
                asked = cluster.admin("POST", f"/v1/requests/{stream.id}/migrate", json={})
                wait_for(lambda asked=asked: is_committed(cluster, asked["id"]), 60, "the request has moved")
            stream.assert_goes_on()
        finally:
            stream.close()
            stream.join(60)


def is_committed(cluster: RunningCluster, migration: str) -> bool:
    return bool(cluster.admin("GET", f"/v1/migrations/{migration}")["state"] == "committed")


@pytest.mark.parametrize(
    ("to", "status", "why"),
    [("i0", 409, "at that instance already"), ("i99", 404, "i99")],
)
def test_a_move_that_cannot_be_is_refused_with_the_reason(
    cluster: RunningCluster, to: str, status: int, why: str
) -> None:
    with streams_on(cluster, "instance", ["i0"]) as streams:
        request = row_of(cluster, streams["i0"])["id"]
        refused = cluster.admin_response("POST", f"/v1/requests/{request}/migrate", json={"to": to})
        assert refused.status_code == status and re.search(why, refused.json()["error"]["message"])
        streams["i0"].assert_goes_on()


def test_blocks_that_the_target_has_are_not_sent(cluster: RunningCluster) -> None:
    """There and back again: the former host still has the request's first blocks in its prefix cache."""
    with streams_on(cluster, "instance", ["i0"]) as streams:
        wait_for(lambda: streams["i0"].chunks > 400, 60, "some blocks are filled")
        move(cluster, streams["i0"], "i1")
        back = move(cluster, streams["i0"], "i0")
        assert back["blocks_skipped"] >= 3
        assert back["blocks_sent"] <= 3


def test_naming_a_response_moves_all_its_children_one_by_one(cluster: RunningCluster) -> None:
    """More of them than may move at once; one child is moved back by its own id."""
    with cluster.cordoned("i1"):
        wait_until_idle(cluster)
        stream = Stream(cluster, 3000, n=5)
        wait_for(lambda: stream.id and places(cluster, stream) == ["i0"] * 5, 60, "all run on i0")
    asked = cluster.admin("POST", f"/v1/requests/{stream.id}/migrate", json={"to": "i1"})
    children = [row["id"] for row in cluster.requests() if row["response_id"] == stream.id]
    assert asked["migrations"] == [asked["id"]] and asked["refused"] == {}
    assert len(asked["following"]) == 4 and set(asked["following"]) < set(children)
    wait_for(lambda: places(cluster, stream) == ["i1"] * 5, 60, "all are on i1")
    moved = [m for m in cluster.migrations("committed") if m["request"] in children]
    assert {m["id"] for m in moved} >= {asked["id"]} and {m["request"] for m in moved} == set(children)
    alone = cluster.admin("POST", f"/v1/requests/{children[2]}/migrate", json={"to": "i0"})
    assert alone["migrations"] == [alone["id"]] and alone["following"] == []
    wait_for(lambda: places(cluster, stream) == ["i0"] + ["i1"] * 4, 60, "one is back on i0")
    stream.join(120)
    assert stream.error is None and stream.tokens == 5 * 3000


def places(cluster: RunningCluster, stream: Stream) -> list[str]:
    rows = [row for row in cluster.requests() if row["response_id"] == stream.id]
    return sorted(row["instance"] or "" for row in rows)
