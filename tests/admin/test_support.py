"""Who is asking, logs, diagnostics, and the rate limit."""

from pathlib import Path

import httpx
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llumnix.admin.gate import Gate
from llumnix.admin.logs import MAX_BYTES, LogDir
from llumnix.admin.rates import RateLimit
from llumnix.admin.tokens import TokenBook
from tests.admin.conftest import OPERATOR, VIEWER
from tests.admin.fake_cluster import FakeCluster


async def test_a_caller_is_told_who_it_is(operator: httpx.AsyncClient, viewer: httpx.AsyncClient) -> None:
    assert (await operator.get("/v1/whoami")).json() == {"name": OPERATOR.name, "role": "operator"}
    assert (await viewer.get("/v1/whoami")).json() == {"name": VIEWER.name, "role": "viewer"}


async def test_logs_are_listed_and_their_ends_are_read(viewer: httpx.AsyncClient, log_dir: Path) -> None:
    (log_dir / "i0.log").write_text("".join(f"line {n}\n" for n in range(500)))
    (log_dir / "llumnixd.log").write_bytes(b"broken \xff byte\n")
    (log_dir / "i0.log.1").write_text("an older part\n")
    assert (await viewer.get("/v1/logs")).json() == {
        "node": "node-a",
        "names": ["i0", "llumnixd"],
        "others": [{"node": "node-b", "names": [], "error": ""}],
    }
    lines = (await viewer.get("/v1/instances/i0/log", params={"lines": 3})).json()["lines"]
    assert lines == ["line 497", "line 498", "line 499"]
    assert len((await viewer.get("/v1/logs/i0")).json()["lines"]) == 200
    assert (await viewer.get("/v1/logs/llumnixd")).json() == {"lines": ["broken � byte"]}


async def test_a_log_on_another_node_is_read_there(
    viewer: httpx.AsyncClient, cluster: FakeCluster, log_dir: Path
) -> None:
    cluster.logs_of_other_nodes["node-b"] = {"i1": ("one", "two"), "i7": ("it was removed",)}
    (log_dir / "i1.log").write_text("of an earlier process\n")
    (log_dir / "i8.log").write_text("it was here\n")

    async def lines(path: str) -> list[str]:
        response = await viewer.get(path)
        assert response.status_code == 200, response.text
        found: list[str] = response.json()["lines"]
        return found

    assert await lines("/v1/instances/i1/log?lines=1") == await lines("/v1/logs/i1?lines=1") == ["two"]
    assert await lines("/v1/logs/i1?node=node-a") == ["of an earlier process"]
    assert await lines("/v1/logs/i7") == ["it was removed"]
    assert await lines("/v1/logs/i8") == ["it was here"]
    assert (await viewer.get("/v1/logs")).json()["others"] == [
        {"node": "node-b", "names": ["i1", "i7"], "error": ""}
    ]


async def test_the_log_of_a_dead_instance_is_where_its_last_process_was(
    viewer: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    cluster.logs_of_other_nodes["node-b"] = {"i1": ("it fell over",)}
    cluster.update("i1", state="pending", node=None)
    assert (await viewer.get("/v1/instances/i1/log")).json() == {"lines": ["it fell over"]}


async def test_a_log_that_cannot_be_had_is_one_sentence(
    viewer: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    async def refused(path: str) -> tuple[int, str]:
        response = await viewer.get(path)
        return response.status_code, response.json()["error"]["message"]

    assert await refused("/v1/instances/i9/log") == (404, "there is no instance 'i9'")
    assert await refused("/v1/instances/i1/log") == (404, "there is no log of 'i1' on node node-b")
    assert await refused("/v1/logs/i9") == (404, "there is no log of 'i9' on the daemon's machine")
    assert (await refused("/v1/logs/i1?node=node-c"))[1].startswith("there is no node 'node-c'")
    cluster.silent_nodes.add("node-b")
    assert await refused("/v1/instances/i1/log") == (409, "node node-b did not answer within 5 s")
    assert await refused("/v1/logs/i9") == (
        404,
        "no log of 'i9' was found; node node-b did not answer within 5 s",
    )
    assert (await viewer.get("/v1/logs")).json()["others"][0]["error"]
    cluster.node_by_id["node-b"] = cluster.node_by_id["node-b"].model_copy(update={"state": "dead"})
    status, message = await refused("/v1/instances/i1/log")
    assert status == 409 and message.startswith("node node-b is dead")
    assert (await viewer.get("/v1/logs")).json()["others"] == []


async def test_no_name_leads_out_of_the_directory(viewer: httpx.AsyncClient, log_dir: Path) -> None:
    (log_dir.parent / "secret.log").write_text("secret\n")
    for name in ("..%2Fsecret", "%2E%2E%2Fsecret", "../secret", "*", "i0%00"):
        response = await viewer.get(f"/v1/logs/{name}")
        assert response.status_code in (400, 404), name
        assert "secret\n" not in response.text


def test_of_a_huge_log_only_the_end_is_read_in_whole_lines(tmp_path: Path) -> None:
    line = "x" * 99 + "\n"
    (tmp_path / "big.log").write_text(line * (MAX_BYTES // 100 + 1000))
    tail = LogDir(tmp_path).tail("big", 10**9)
    assert set(tail) == {"x" * 99}
    assert len(tail) <= MAX_BYTES // 100


async def test_diagnostics_come_as_the_manager_says(viewer: httpx.AsyncClient, cluster: FakeCluster) -> None:
    assert (await viewer.get("/v1/diagnostics")).json() == cluster.diagnostics().model_dump()


async def test_a_token_that_asks_too_often_is_told_to_wait_and_no_other_is() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("served")(scope, receive, send)

    gate = Gate(app, TokenBook([OPERATOR, VIEWER]), RateLimit(per_s=0.5, burst=2, clock=lambda: 0.0))
    transport = httpx.ASGITransport(gate)
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        mine, other = ({"Authorization": f"Bearer {token.secret}"} for token in (VIEWER, OPERATOR))
        answers = [await client.get("/v1/cluster", headers=mine) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[-1].headers["retry-after"] == "2"
        assert answers[-1].json()["error"]["code"] == "too_many_requests"
        assert (await client.get("/v1/cluster", headers=other)).status_code == 200
        assert (await client.get("/healthz", headers=mine)).status_code == 200


def test_a_bucket_fills_at_its_rate_for_each_caller() -> None:
    now = [100.0]
    limit = RateLimit(per_s=8.0, burst=3, clock=lambda: now[0])
    assert [limit.wait_s("a") for _ in range(3)] == [0.0, 0.0, 0.0]
    assert limit.wait_s("a") == 0.125
    assert limit.wait_s("b") == 0.0
    now[0] += 0.125
    assert limit.wait_s("a") == 0.0
    now[0] += 1000.0
    assert [limit.wait_s("a") for _ in range(4)][-1] > 0.0
