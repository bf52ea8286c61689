"""The reading half of the API over a real server."""

import httpx
import pytest

from llumnix.admin.journal import Journal
from llumnix.admin.schema import (
    Cluster,
    EventPage,
    InstancePage,
    Migration,
    MigrationPage,
    MigrationTotals,
    Node,
    NodePage,
    RequestPage,
)
from tests.admin.fake_cluster import FakeCluster, make_instance, make_request


def error_code(response: httpx.Response) -> str:
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message"}
    assert body["error"]["message"]
    return str(body["error"]["code"])


async def test_the_cluster_comes_as_the_manager_says(viewer: httpx.AsyncClient, cluster: FakeCluster) -> None:
    response = await viewer.get("/v1/cluster")
    assert response.status_code == 200
    assert Cluster.model_validate_json(response.content) == cluster.cluster()


async def test_instances_are_listed_by_id_in_pages(viewer: httpx.AsyncClient, cluster: FakeCluster) -> None:
    cluster.instance_by_id |= {f"i{n}": make_instance(f"i{n}") for n in range(12)}
    ids: list[str] = []
    params = {"limit": "5"}
    while True:
        page = InstancePage.model_validate_json((await viewer.get("/v1/instances", params=params)).content)
        ids += [instance.id for instance in page.items]
        if page.next is None:
            break
        params["cursor"] = page.next
    assert ids == [f"i{n}" for n in range(12)]


async def test_one_instance_and_one_node_by_id(viewer: httpx.AsyncClient, cluster: FakeCluster) -> None:
    instance = (await viewer.get("/v1/instances/i1")).json()
    assert instance == cluster.instance_by_id["i1"].model_dump(mode="json")
    node = await viewer.get("/v1/nodes/node-b")
    assert Node.model_validate_json(node.content) == cluster.node_by_id["node-b"]
    nodes = NodePage.model_validate_json((await viewer.get("/v1/nodes")).content)
    assert [node.id for node in nodes.items] == ["node-a", "node-b"]


async def test_a_draining_instance_has_a_null_freeness(
    viewer: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    await cluster.remove_instance("i0", "test")
    assert (await viewer.get("/v1/instances/i0")).json()["freeness"] is None


async def test_what_is_not_there_is_a_404_in_the_contracts_form(viewer: httpx.AsyncClient) -> None:
    for path in ("instances/no", "nodes/no", "requests/no", "migrations/no", "nothing", "requests/a/b"):
        response = await viewer.get(f"/v1/{path}")
        assert response.status_code == 404, path
        assert error_code(response) == "not_found", path


async def test_requests_are_filtered_and_the_oldest_come_first(
    viewer: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    cluster.add(
        make_request("r-new", arrived_at=30.0),
        make_request("r-old", arrived_at=10.0, priority="high"),
        make_request("r-mid", arrived_at=20.0, instance="i1"),
        make_request("r-held", arrived_at=15.0, instance=None, state="queued"),
    )

    async def ids(**params: str) -> list[str]:
        page = RequestPage.model_validate_json((await viewer.get("/v1/requests", params=params)).content)
        return [request.id for request in page.items]

    assert await ids() == ["r-old", "r-held", "r-mid", "r-new"]
    assert await ids(instance="i0") == ["r-old", "r-new"]
    assert await ids(priority="high") == ["r-old"]
    assert await ids(instance="i0", priority="normal") == ["r-new"]
    assert await ids(instance="nowhere") == []
    assert await ids(limit="2") == ["r-old", "r-held"]


async def test_a_page_of_requests_goes_on_after_a_request_that_has_ended(
    viewer: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    cluster.add(*(make_request(f"r{n}", arrived_at=float(n)) for n in range(4)))
    first = (await viewer.get("/v1/requests", params={"limit": "2"})).json()
    del cluster.request_by_id["r1"]
    second = (await viewer.get("/v1/requests", params={"limit": "2", "cursor": first["next"]})).json()
    assert [request["id"] for request in second["items"]] == ["r2", "r3"]
    assert second["next"] is None


async def test_a_request_is_found_by_either_id(viewer: httpx.AsyncClient, cluster: FakeCluster) -> None:
    cluster.add(*(make_request(f"{n}_cmpl-7-abc", response_id="cmpl-7") for n in range(2)))
    assert (await viewer.get("/v1/requests/1_cmpl-7-abc")).json()["id"] == "1_cmpl-7-abc"
    assert (await viewer.get("/v1/requests/cmpl-7")).json()["id"] == "0_cmpl-7-abc"
    children = (await viewer.get("/v1/requests", params={"response_id": "cmpl-7"})).json()["items"]
    assert [child["id"] for child in children] == ["0_cmpl-7-abc", "1_cmpl-7-abc"]


async def test_an_id_may_hold_an_encoded_slash(viewer: httpx.AsyncClient, cluster: FakeCluster) -> None:
    cluster.add(make_request("chatcmpl-team/7 ü%2F"))
    response = await viewer.get("/v1/requests/chatcmpl-team%2F7%20%C3%BC%252F")
    assert response.json()["id"] == "chatcmpl-team/7 ü%2F"


async def test_migrations_are_listed_the_newest_first(
    viewer: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    empty = MigrationPage.model_validate_json((await viewer.get("/v1/migrations")).content)
    assert (empty.items, empty.next) == ((), None)
    cluster.migration_list = [
        Migration(id=f"m{n}", request="r", source="i0", target="i1", state="committed", started_at=float(n))
        for n in range(3)
    ]
    listed = (await viewer.get("/v1/migrations", params={"limit": "2"})).json()
    assert [migration["id"] for migration in listed["items"]] == ["m2", "m1"]
    assert (await viewer.get("/v1/migrations/m0")).json()["id"] == "m0"


async def test_totals_of_migrations_come_by_source_and_target(
    viewer: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    told = MigrationTotals.model_validate_json((await viewer.get("/v1/migration-totals")).content)
    assert told == cluster.migration_totals()


async def test_events_page_in_both_directions(viewer: httpx.AsyncClient, journal: Journal) -> None:
    seqs = [journal.append("test.event", data={"n": n}).seq for n in range(7)]

    async def walk(**params: str) -> list[int]:
        seen: list[int] = []
        while True:
            page = EventPage.model_validate_json((await viewer.get("/v1/events", params=params)).content)
            seen += [event.seq for event in page.items]
            if page.next is None:
                return seen
            params["cursor"] = page.next

    assert await walk(limit="3") == seqs
    assert await walk(limit="3", order="desc") == seqs[::-1]
    assert await walk(limit="2", since=str(seqs[3])) == seqs[4:]
    assert await walk(limit="2", since=str(seqs[3]), order="desc") == seqs[:3:-1]
    assert await walk(since=str(seqs[-1])) == []


BAD_QUERIES = (
    "instances?limit=0",
    "instances?limit=1001",
    "instances?limit=many",
    "instances?cursor=!",
    "instances?limt=5",
    "instances/i0?verbose=1",
    "cluster?verbose=1",
    "requests?instance=",
    "events?since=-1",
    "events?since=9223372036854775808",
    "events?order=up",
    "events?cursor=WyJ4Il0",
    "events/stream?since=x",
    "events/stream?limit=5",
)


async def test_unknown_parameters_and_bad_values_are_refused(viewer: httpx.AsyncClient) -> None:
    for path in BAD_QUERIES:
        response = await viewer.get(f"/v1/{path}")
        assert response.status_code == 400, path
        assert error_code(response) == "invalid", path


async def test_a_bad_value_is_answered_with_field_and_value(viewer: httpx.AsyncClient) -> None:
    message = (await viewer.get("/v1/instances?limit=5000")).json()["error"]["message"]
    assert "limit" in message and "1000" in message and "5000" in message


async def test_the_configuration_comes_as_it_is_given(
    viewer: httpx.AsyncClient, cluster: FakeCluster
) -> None:
    assert (await viewer.get("/v1/config")).json() == cluster.config()


async def test_readyz_follows_the_manager(stranger: httpx.AsyncClient, cluster: FakeCluster) -> None:
    assert (await stranger.get("/readyz")).json() == {"ready": True}
    cluster.readiness = (False, "instance i1 is starting")
    response = await stranger.get("/readyz")
    assert (response.status_code, error_code(response)) == (503, "not_ready")
    assert "i1" in response.text


async def test_a_fault_is_a_500_that_keeps_its_cause_to_the_log(
    viewer: httpx.AsyncClient, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.fault = ZeroDivisionError("inner detail")
    response = await viewer.get("/v1/cluster")
    assert (response.status_code, error_code(response)) == (500, "internal")
    assert "inner detail" not in response.text
    assert "inner detail" in caplog.text
    cluster.fault = None
    assert (await viewer.get("/v1/cluster")).status_code == 200


async def test_metrics_show_the_state_by_unit(
    viewer: httpx.AsyncClient, cluster: FakeCluster, journal: Journal
) -> None:
    cluster.instance_by_id["i1"] = make_instance("i1", state="failed", freeness=None, step_ms=None)
    cluster.add(make_request("r0"), make_request("r1", priority="high", state="queued"))
    journal.append("test.event")
    response = await viewer.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = set(response.text.splitlines())
    expected = {
        'llumnix_instances{state="running"} 1.0',
        'llumnix_instances{state="failed"} 1.0',
        'llumnix_instances{state="starting"} 0.0',
        'llumnix_instance_kv_blocks_capacity{instance="i0"} 100.0',
        'llumnix_instance_kv_blocks_used{instance="i0"} 40.0',
        'llumnix_instance_freeness{instance="i0"} 17.5',
        'llumnix_instance_running_requests{instance="i0"} 3.0',
        'llumnix_instance_waiting_requests{instance="i0"} 1.0',
        'llumnix_instance_step_seconds{instance="i0"} 0.008',
        'llumnix_instance_tokens_per_second{instance="i0"} 375.0',
        'llumnix_instance_restarts_total{instance="i0"} 2.0',
        'llumnix_requests{priority="normal",state="running"} 1.0',
        'llumnix_requests{priority="high",state="queued"} 1.0',
        'llumnix_requests{priority="high",state="running"} 0.0',
        'llumnix_migrations_total{outcome="committed"} 5.0',
        'llumnix_api_servers{state="serving"} 1.0',
        'llumnix_cluster_state{state="serving"} 1.0',
        "llumnix_journal_events_total 1.0",
        "llumnix_instances_wanted 2.0",
    }
    assert expected <= lines
    assert not [line for line in lines if line.startswith('llumnix_instance_freeness{instance="i1"')]
