"""Commands: each reaches the manager once and leaves exactly one audit event."""

from typing import Any

import httpx
import pytest

from llumnix.admin.journal import Journal
from llumnix.admin.schema import Event
from llumnix.errors import LlumnixError
from tests.admin.fake_cluster import FakeCluster, make_request


def audit(journal: Journal) -> list[tuple[str, str, str, Any]]:
    events = journal.since(0, 1000)
    return [(event.kind, event.actor, event.target, event.data["outcome"]) for event in events]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "call", "kind", "target"),
    [
        ("POST", "instances", {"count": 2}, 202, ("add_instances", 2, "ops"), "add_instances", "cluster"),
        (
            "DELETE",
            "instances/i1",
            None,
            202,
            ("remove_instance", "i1", "ops"),
            "remove_instance",
            "instance/i1",
        ),
        (
            "POST",
            "instances/i0/cordon",
            None,
            200,
            ("cordon", "instance", "i0", "ops"),
            "cordon",
            "instance/i0",
        ),
        (
            "POST",
            "instances/i0/uncordon",
            {},
            200,
            ("uncordon", "instance", "i0", "ops"),
            "uncordon",
            "instance/i0",
        ),
        (
            "POST",
            "instances/i0/drain",
            None,
            202,
            ("drain", "instance", "i0", None, "leave", "ops"),
            "drain",
            "instance/i0",
        ),
        (
            "POST",
            "instances/i0/drain",
            {"timeout_s": 5, "on_timeout": "abort"},
            202,
            ("drain", "instance", "i0", 5, "abort", "ops"),
            "drain",
            "instance/i0",
        ),
        (
            "POST",
            "nodes/node-a/cordon",
            None,
            200,
            ("cordon", "node", "node-a", "ops"),
            "cordon",
            "node/node-a",
        ),
        (
            "POST",
            "nodes/node-a/uncordon",
            None,
            200,
            ("uncordon", "node", "node-a", "ops"),
            "uncordon",
            "node/node-a",
        ),
        (
            "POST",
            "nodes/node-a/drain",
            {"timeout_s": None},
            202,
            ("drain", "node", "node-a", None, "leave", "ops"),
            "drain",
            "node/node-a",
        ),
        ("POST", "cluster/scale", {"count": 3}, 202, ("scale", 3, "ops"), "scale", "cluster"),
        (
            "POST",
            "instances/i0/restart",
            {"timeout_s": 5},
            202,
            ("restart", "i0", 5, "leave", "ops"),
            "restart",
            "instance/i0",
        ),
        (
            "POST",
            "instances/i0/terminate",
            {"deadline_s": 30},
            202,
            ("terminate", "instance", "i0", 30, "ops"),
            "terminate",
            "instance/i0",
        ),
        (
            "POST",
            "nodes/node-b/terminate",
            {"deadline_s": 0.5},
            202,
            ("terminate", "node", "node-b", 0.5, "ops"),
            "terminate",
            "node/node-b",
        ),
        (
            "PATCH",
            "requests/r0",
            {"priority": "high"},
            200,
            ("set_priority", "r0", "high", "ops"),
            "set_priority",
            "request/r0",
        ),
        ("DELETE", "requests/r0", None, 202, ("abort_request", "r0", "ops"), "abort_request", "request/r0"),
    ],
)
async def test_a_command_reaches_the_manager_once_and_is_audited_once(
    operator: httpx.AsyncClient,
    cluster: FakeCluster,
    journal: Journal,
    method: str,
    path: str,
    body: Any,
    status: int,
    call: tuple[Any, ...],
    kind: str,
    target: str,
) -> None:
    cluster.add(make_request("r0"))
    response = await operator.request(method, f"/v1/{path}", **({} if body is None else {"json": body}))
    assert response.status_code == status, response.text
    assert cluster.calls == [call]
    assert audit(journal) == [(f"operator.{kind}", "ops", target, "done")]


async def test_answers_show_the_state_after_the_command(
    operator: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    cluster.add(make_request("r0"))
    assert (await operator.post("/v1/instances", json={"count": 1})).json() == {"ids": ["i2"]}
    assert (await operator.post("/v1/instances/i0/cordon")).json()["state"] == "cordoned"
    drained = (await operator.post("/v1/instances/i0/drain")).json()
    assert (drained["state"], drained["blockers"]) == ("draining", ["3 requests run"])
    assert (await operator.post("/v1/nodes/node-b/cordon")).json()["state"] == "cordoned"
    assert (await operator.patch("/v1/requests/r0", json={"priority": "high"})).json()["priority"] == "high"
    assert (await operator.delete("/v1/requests/r0")).json() == {"id": "r0"}


async def test_migration_is_answered_with_why_it_cannot_be(
    operator: httpx.AsyncClient, cluster: FakeCluster, journal: Journal
) -> None:
    cluster.add(make_request("r0"))
    for body in ({}, {"to": "i1"}, {"to": None}):
        response = await operator.post("/v1/requests/r0/migrate", json=body)
        assert response.status_code == 409
        assert response.json()["error"]["code"] == "migration_unavailable"
        assert "live migration" in response.json()["error"]["message"]
    assert (await operator.post("/v1/requests/none/migrate")).status_code == 404
    assert [entry[3] for entry in audit(journal)] == ["refused"] * 4


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "instances", {"count": 50}, 409, "refused"),
        ("DELETE", "instances/no", None, 404, "not_found"),
        ("POST", "nodes/no/drain", None, 404, "not_found"),
        ("DELETE", "requests/no", None, 404, "not_found"),
        ("PATCH", "requests/r0", {"priority": "urgent"}, 400, "invalid"),
    ],
)
async def test_a_refusal_by_the_manager_is_answered_and_audited(
    operator: httpx.AsyncClient,
    cluster: FakeCluster,
    journal: Journal,
    method: str,
    path: str,
    body: Any,
    status: int,
    code: str,
) -> None:
    cluster.add(make_request("r0"))
    response = await operator.request(method, f"/v1/{path}", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    [event] = journal.since(0, 10)
    assert (event.data["outcome"], event.severity) == ("refused", "warning")
    assert response.json()["error"]["message"] == event.data["why"]


@pytest.mark.parametrize("fault", [RuntimeError("engine gone"), LlumnixError("no such luck")])
async def test_a_fault_in_a_command_is_a_500_and_audited(
    operator: httpx.AsyncClient,
    cluster: FakeCluster,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
) -> None:
    async def failing(*_: object) -> None:
        raise fault

    monkeypatch.setattr(cluster, "cordon", failing)
    response = await operator.post("/v1/instances/i0/cordon")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    [event] = journal.since(0, 10)
    assert (event.data["outcome"], event.severity) == ("failed", "error")
    assert str(fault) in str(event.data["why"])


async def test_an_action_is_answered_truthfully_and_logged_when_the_journal_cannot_be_written(
    operator: httpx.AsyncClient,
    cluster: FakeCluster,
    journal: Journal,
    caplog: pytest.LogCaptureFixture,
) -> None:
    journal.close()
    response = await operator.post("/v1/instances/i0/cordon")
    assert (response.status_code, response.json()["state"]) == (200, "cordoned")
    assert "ops: cordon instance/i0: done" in caplog.text
    reading = await operator.get("/v1/events")
    assert (reading.status_code, reading.json()["error"]["code"]) == (503, "journal_unavailable")


BAD_BODIES = (
    ("POST", "instances", b'{"count": 1, "cuont": 2}'),
    ("POST", "instances", b"{}"),
    ("POST", "instances", b""),
    ("POST", "instances", b"[]"),
    ("POST", "instances", b'{"count": "1"}'),
    ("POST", "instances", b'{"count": 1'),
    ("POST", "instances", b"\xff\xfe"),
    ("POST", "instances", b"[" * 60_000),
    ("POST", "instances?dry=1", b'{"count": 1}'),
    ("POST", "instances/i0/drain", b'{"timeout_s": NaN}'),
    ("POST", "instances/i0/drain", b'{"timeout": 5}'),
    ("POST", "instances/i0/cordon", b'{"why": "maintenance"}'),
    ("DELETE", "instances/i0", b'{"force": true}'),
    ("DELETE", "instances/i0?force=true", b""),
    ("PATCH", "requests/r0", b'{"priority": "high", "instance": "i1"}'),
    ("PATCH", "requests/r0", b'{"priority": "\\ud800"}'),
    ("POST", "requests/r0/migrate", b'{"to": 1}'),
)


async def test_a_bad_body_changes_nothing(
    operator: httpx.AsyncClient, cluster: FakeCluster, journal: Journal
) -> None:
    cluster.add(make_request("r0"))
    headers = {"Content-Type": "application/json"}
    for method, path, content in BAD_BODIES:
        response = await operator.request(method, f"/v1/{path}", content=content, headers=headers)
        assert response.status_code == 400, (path, content)
        assert response.json()["error"]["code"] == "invalid", (path, content)
    assert cluster.calls == []
    assert journal.last_seq == 0


async def test_the_audit_event_tells_what_was_asked_and_answered(
    operator: httpx.AsyncClient, journal: Journal
) -> None:
    await operator.post("/v1/instances", json={"count": 2})
    [event] = journal.since(0, 10)
    assert isinstance(event, Event)
    assert event.data == {"outcome": "done", "asked": {"count": 2}, "answer": ["i2", "i3"]}
    assert event.message == "ops: add_instances cluster: done"
