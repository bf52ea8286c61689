"""Who is let in: no route acts or tells without a token, a viewer only reads, bodies are bounded."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from llumnix.admin.gate import MAX_BODY_BYTES, OPEN_PATHS
from llumnix.admin.journal import Journal
from llumnix.admin.server import AdminServer
from tests.admin.conftest import OPERATOR
from tests.admin.fake_cluster import FakeCluster


async def all_operations(client: httpx.AsyncClient) -> list[tuple[str, str]]:
    described = (await client.get("/openapi.json")).json()
    return [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, methods in described["paths"].items()
        for method in methods
    ]


async def test_no_operation_answers_without_a_token(
    stranger: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    closed = [(m, p) for m, p in await all_operations(stranger) if p not in OPEN_PATHS]
    assert len(closed) > 20
    for method, path in [
        *closed,
        ("GET", "/v1/nothing"),
        ("GET", "/"),
        ("POST", "/healthz"),
    ]:
        response = await stranger.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized"), (
            method,
            path,
        )
        assert response.headers["www-authenticate"] == "Bearer"
    assert cluster.calls == []


async def test_probes_and_the_description_are_open(stranger: httpx.AsyncClient) -> None:
    for path in sorted(OPEN_PATHS):
        assert (await stranger.get(path)).status_code == 200


@pytest.mark.parametrize("header", ["Bearer wrong", "Basic operator-secret", "operator-secret", "Bearer"])
async def test_a_wrong_token_is_nobody(stranger: httpx.AsyncClient, header: str) -> None:
    response = await stranger.get("/v1/cluster", headers={"Authorization": header})
    assert response.status_code == 401


async def test_a_viewer_reads_everything_and_changes_nothing(
    viewer: httpx.AsyncClient, cluster: FakeCluster, journal: Journal
) -> None:
    for method, path in await all_operations(viewer):
        if path == "/v1/events/stream":
            continue
        response = await viewer.request(method, path)
        if method == "GET":
            assert response.status_code in (200, 404), (method, path)
        else:
            assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden"), (
                method,
                path,
            )
    assert cluster.calls == []
    assert journal.last_seq == 0


async def test_the_wrong_method_names_the_right_ones(operator: httpx.AsyncClient) -> None:
    response = await operator.put("/v1/instances")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "GET, POST"


async def test_a_large_body_is_refused_unread(operator: httpx.AsyncClient, cluster: FakeCluster) -> None:
    body = b'{"count": 1, "pad": "' + b"x" * MAX_BODY_BYTES + b'"}'
    response = await operator.post("/v1/instances", content=body)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")

    async def in_chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 8192):
            yield body[start : start + 8192]

    chunked = await operator.post("/v1/instances", content=in_chunks())
    assert chunked.status_code == 413
    assert cluster.calls == []


async def test_a_client_that_leaves_within_its_body_has_asked_for_nothing(
    server: AdminServer, operator: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST /v1/instances/i0/drain HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OPERATOR.secret}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n".encode())
    await writer.drain()
    assert (await operator.get("/healthz")).status_code == 200
    writer.close()
    await writer.wait_closed()
    # A second round trip: the server has seen the end of the first connection by then.
    for _ in range(5):
        assert (await operator.get("/healthz")).status_code == 200
    assert cluster.calls == []


async def test_every_operation_describes_its_errors(stranger: httpx.AsyncClient) -> None:
    described = (await stranger.get("/openapi.json")).json()
    assert "HTTPValidationError" not in described["components"]["schemas"]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            statuses = set(operation["responses"])
            assert "422" not in statuses
            if path not in OPEN_PATHS:
                assert "401" in statuses and operation["security"], (method, path)
            if method != "get":
                assert {"400", "403", "404", "409", "413"} <= statuses, (method, path)
