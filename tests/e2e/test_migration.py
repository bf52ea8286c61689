"""Live migration on real engines: what clients get does not depend on it."""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any

import httpx
import pytest

from tests.e2e.running import RunningCluster, wait_for
from tests.e2e.streams import Stream, row_of, streams_on
from tests.e2e.workload import answers, bodies


async def move_at_random(cluster: RunningCluster, stop: asyncio.Event, rng: random.Random) -> int:
    """Move running requests to wherever, as fast as the admin API answers; how many were taken."""
    token = (cluster.state_dir / "admin.token").read_text().strip()
    taken = 0
    async with httpx.AsyncClient(
        base_url=cluster.admin_url, headers={"authorization": f"Bearer {token}"}, timeout=20
    ) as http:
        while not stop.is_set():
            await asyncio.sleep(0.02)
            rows = (await http.get("/v1/requests?limit=1000")).json()["items"]
            if rows:
                moved = await http.post(f"/v1/requests/{rng.choice(rows)['id']}/migrate", json={})
                assert moved.status_code in (202, 404, 409), moved.text
                taken += moved.status_code == 202
    return taken


async def test_moved_requests_answer_token_for_token_as_unmoved_ones(cluster: RunningCluster) -> None:
    requests = bodies(24, max_tokens=800)
    unmoved = await answers(cluster, requests)
    before = len(migrations(cluster, "committed"))
    stop = asyncio.Event()
    mover = asyncio.create_task(move_at_random(cluster, stop, random.Random(1)))
    moved = await answers(cluster, requests)
    stop.set()
    assert await mover > 0
    assert len(migrations(cluster, "committed")) > before
    assert all(isinstance(got, tuple) for got in unmoved), unmoved
    assert moved == unmoved


def migrations(cluster: RunningCluster, state: str) -> list[dict[str, Any]]:
    listed = cluster.admin("GET", "/v1/migrations?limit=1000")["items"]
    return [migration for migration in listed if migration["state"] == state]


def move(cluster: RunningCluster, stream: Stream, to: str) -> dict[str, Any]:
    """Move a stream's request by hand, wait until the admin API shows it there; the migration."""
    request = row_of(cluster, stream)["id"]
    asked = cluster.admin("POST", f"/v1/requests/{request}/migrate", json={"to": to})

    def ended() -> dict[str, Any] | None:
        migration: dict[str, Any] = cluster.admin("GET", f"/v1/migrations/{asked['id']}")
        return migration if migration["state"] in ("committed", "aborted") else None

    migration: dict[str, Any] = wait_for(ended, 20, "the migration has ended")
    wait_for(lambda: row_of(cluster, stream)["instance"] == to, 20, f"the request is on {to}: {migration}")
    return migration


def test_a_request_is_moved_by_hand_and_the_api_tells_how(cluster: RunningCluster) -> None:
    with streams_on(cluster, "instance", ["i0"]) as streams:
        request = row_of(cluster, streams["i0"])["id"]
        moved = move(cluster, streams["i0"], "i1")
        streams["i0"].assert_goes_on()
        assert (moved["source"], moved["target"], moved["state"]) == ("i0", "i1", "committed")
        assert moved["request"] == request and "operator admin" in moved["reason"]
        assert moved["bytes"] > 0 and moved["downtime_ms"] > 0
        assert row_of(cluster, streams["i0"])["migrations"] == 1
    assert [e for e in cluster.events("migration.committed") if request in e["target"]]


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
        assert back["state"] == "committed"
        assert back["blocks_skipped"] >= 3
        assert back["blocks_sent"] <= 3
