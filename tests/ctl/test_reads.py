"""Commands that show something: tables for people, JSON for programs."""

import json
from pathlib import Path

from llumnix.admin.journal import Journal
from llumnix.admin.schema import Cluster, Instance, Migration
from tests.admin.fake_cluster import FakeCluster, make_instance, make_request
from tests.ctl.conftest import Ctl


async def test_status_shows_the_cluster_and_its_exit_code_tells_whether_it_serves(
    ctl: Ctl, cluster: FakeCluster
) -> None:
    shown = await ctl("status")
    assert shown.exit_code == 0, shown.output
    for text in ("fake", "serving", "llumnix+", "5 committed"):
        assert text in shown.stdout
    told = await ctl("status", "--json")
    assert Cluster.model_validate_json(told.stdout) == cluster.cluster()
    cluster.state = "degraded"
    assert (await ctl("status")).exit_code == 6


async def test_lists_come_as_tables_and_as_json(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.add(make_request("r-long-and-complete-id-0123456789", priority="high", reason="[moved] away"))
    cluster.instance_by_id["i2"] = make_instance("i2", state="starting", stage="loads the model")
    instances = (await ctl("instances")).stdout
    assert instances.splitlines()[0].split()[:3] == ["INSTANCE", "NODE", "STATE"]
    assert "17.5" in instances and "loads the model" in instances
    requests = (await ctl("requests", "--priority", "high")).stdout
    assert "r-long-and-complete-id-0123456789" in requests and "[moved] away" in requests
    assert "r-long" not in (await ctl("requests", "--priority", "normal")).stdout
    assert "10.0.0.1" in (await ctl("nodes")).stdout
    listed = json.loads((await ctl("instances", "--json")).stdout)
    assert [Instance(**item).id for item in listed] == ["i0", "i1", "i2"]


async def test_a_list_is_read_to_its_end_or_its_limit(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.add(*(make_request(f"r{n}", arrived_at=float(n)) for n in range(1500)))
    assert len(json.loads((await ctl("requests", "--json")).stdout)) == 1500
    assert len(json.loads((await ctl("requests", "--json", "--limit", "1200")).stdout)) == 1200


async def test_migrations_show_how_far_they_are(ctl: Ctl, cluster: FakeCluster) -> None:
    cluster.migration_list = [
        Migration(
            id="m1",
            request="r",
            source="i0",
            target="i1",
            state="copying",
            started_at=1.0,
            blocks_total=40,
            blocks_sent=12,
        )
    ]
    assert "12/40" in (await ctl("migrations")).stdout


async def test_events_are_the_newest_and_go_on_after_a_number(ctl: Ctl, journal: Journal) -> None:
    seqs = [journal.append("test.event", f"number {n}", target="cluster").seq for n in range(5)]
    lines = (await ctl("events", "--limit", "2")).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [str(seq) for seq in seqs[-2:]]
    assert lines[-1].endswith("test.event cluster number 4")
    later = (await ctl("events", "--since", str(seqs[2]), "--json")).stdout.splitlines()
    assert [json.loads(line)["seq"] for line in later] == seqs[3:]


async def test_config_and_logs_are_shown(ctl: Ctl, cluster: FakeCluster, log_dir: Path) -> None:
    (log_dir / "api0.log").write_text("one\ntwo\n")
    assert json.loads((await ctl("config")).stdout) == cluster.config()
    assert (await ctl("logs", "api0", "--lines", "1")).stdout == "two\n"
    cluster.logs_of_other_nodes["node-b"] = {"i1": ("three",), "api0": ("four",)}
    assert (await ctl("logs", "i1")).stdout == "three\n"
    assert (await ctl("logs", "api0", "--node", "node-b")).stdout == "four\n"
