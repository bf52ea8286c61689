"""Requests that are moved by hand while they run."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx

from tests.e2e.running import RunningCluster, wait_for
from tests.e2e.streams import Stream, row_of


def move(cluster: RunningCluster, stream: Stream, to: str) -> dict[str, Any]:
    """Move a stream's request, wait until the admin API shows it there; the migration."""
    request = row_of(cluster, stream)["id"]
    asked = cluster.admin("POST", f"/v1/requests/{request}/migrate", json={"to": to})

    def ended() -> dict[str, Any] | None:
        migration: dict[str, Any] = cluster.admin("GET", f"/v1/migrations/{asked['id']}")
        return migration if migration["state"] in ("committed", "aborted") else None

    migration: dict[str, Any] = wait_for(ended, 60, "the migration has ended")
    assert migration["state"] == "committed", migration
    wait_for(lambda: row_of(cluster, stream)["instance"] == to, 60, f"the request is on {to}: {migration}")
    return migration


async def move_at_random(cluster: RunningCluster, stop: asyncio.Event, rng: random.Random) -> None:
    """Move running requests to wherever, as fast as the admin API answers."""
    token = (cluster.state_dir / "admin.token").read_text().strip()
    async with httpx.AsyncClient(
        base_url=cluster.admin_url, headers={"authorization": f"Bearer {token}"}, timeout=60
    ) as http:
        while not stop.is_set():
            await asyncio.sleep(0.02)
            rows = (await http.get("/v1/requests?limit=1000")).json()["items"]
            if rows:
                moved = await http.post(f"/v1/requests/{rng.choice(rows)['id']}/migrate", json={})
                assert moved.status_code in (202, 404, 409), moved.text
