"""Commands that change something, their waiting, and how they end."""

import asyncio
import json
import tarfile
import tomllib
from pathlib import Path
from typing import cast

import pytest
from typer.testing import CliRunner

from llumnix.admin.journal import Journal, JournalError
from llumnix.admin.schema import Event, MigrationsBegun
from llumnix.admin.tokens import read_token
from llumnix.config import load_config
from llumnix.ctl.api import AdminApi
from llumnix.ctl.cli import app
from llumnix.ctl.errors import CtlError, Exit
from llumnix.ctl.waiting import Watch, follow
from tests.admin.fake_cluster import FakeCluster, make_request
from tests.ctl.conftest import Ctl


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["cordon", "i0"], ("cordon", "instance", "i0", "ops")),
        (["uncordon", "node-b"], ("uncordon", "node", "node-b", "ops")),
        (["drain", "node/node-a"], ("drain", "node", "node-a", None, "leave", "ops")),
        (
            ["drain", "i1", "--timeout", "30", "--on-timeout", "abort"],
            ("drain", "instance", "i1", 30.0, "abort", "ops"),
        ),
        (["remove", "i1"], ("remove_instance", "i1", "ops")),
        (["terminate", "i1", "--deadline", "120"], ("terminate", "instance", "i1", 120.0, "ops")),
        (["priority", "r/0", "high"], ("set_priority", "r/0", "high", "ops")),
        (["abort", "r/0"], ("abort_request", "r/0", "ops")),
        (["scale", "3"], ("scale", 3, "ops")),
    ],
)
async def test_a_command_reaches_the_cluster_once(
    ctl: Ctl, cluster: FakeCluster, words: list[str], call: tuple[object, ...]
) -> None:
    cluster.add(make_request("r/0"))
    done = await ctl(*words, "--json")
    assert done.exit_code == 0, done.output
    assert cluster.calls == [call]
    assert json.loads(done.stdout)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["scale", "9"], 1, "instances.max is 4"),
        (["migrate", "r0", "--to", "i1"], 1, "live migration is not built into this release"),
        (["priority", "r0", "urgent"], 1, "expected high or normal"),
        (["abort", "nothing"], 1, "there is no unfinished request"),
        (["cordon", "i77"], 1, "there is no instance and no node 'i77'"),
        (["scale", "many"], 2, "Invalid value"),
        (["drain", "i0", "--on-timeout", "kill"], 2, "kill"),
    ],
)
async def test_what_is_refused_is_said_on_standard_error(
    ctl: Ctl, cluster: FakeCluster, words: list[str], code: int, sentence: str
) -> None:
    cluster.add(make_request("r0"))
    done = await ctl(*words)
    assert (done.exit_code, done.stdout) == (code, "")
    assert sentence in done.stderr


async def test_a_viewer_changes_nothing_and_a_stranger_sees_nothing(
    ctl: Ctl, cluster: FakeCluster, tmp_path: Path
) -> None:
    refused = await ctl("drain", "i0", token="dash")
    assert refused.exit_code == 4 and "role viewer" in refused.stderr
    (tmp_path / "unknown").write_text("no-such-secret\n")
    for token, why in (("unknown", "bearer token"), ("missing", "cannot read")):
        done = await ctl("status", token=token)
        assert done.exit_code == 4 and why in done.stderr
    assert cluster.calls == []


async def test_a_daemon_that_is_not_there_is_an_exit_code_of_its_own(ctl: Ctl) -> None:
    done = await ctl("status", url="http://127.0.0.1:9")
    assert done.exit_code == 3 and "http://127.0.0.1:9 does not answer" in done.stderr


@pytest.mark.parametrize("url", ["localhost", "http://", "http://127.0.0.1:99999", "http://[::1"])
async def test_a_url_that_cannot_be_is_one_sentence(ctl: Ctl, url: str) -> None:
    done = await ctl("status", url=url)
    assert done.exit_code == 2
    assert done.stderr == f"--url: {url!r}, expected a URL such as http://127.0.0.1:8001\n"


async def test_drain_waits_until_it_is_safe_to_remove(
    ctl: Ctl, cluster: FakeCluster, journal: Journal
) -> None:
    waiting = asyncio.create_task(ctl("drain", "i0", "--wait"))
    while not cluster.calls:
        await asyncio.sleep(0.01)
    seen = cluster.num_looks
    while cluster.num_looks == seen:
        await asyncio.sleep(0.01)
    assert not waiting.done()
    cluster.update("i0", state="drained", blockers=(), safe_to_remove=True)
    done = await waiting
    assert done.exit_code == 0 and "3 requests run" in done.stderr and "safe to remove" in done.stderr


async def test_a_drain_that_gives_up_is_told_with_what_blocks_it(ctl: Ctl, cluster: FakeCluster) -> None:
    waiting = asyncio.create_task(ctl("drain", "i0", "--wait", "--timeout", "1"))
    while not cluster.calls:
        await asyncio.sleep(0.01)
    cluster.update("i0", state="cordoned", reason="not empty after 1.0 s")
    done = await waiting
    assert done.exit_code == 5 and "3 requests run" in done.stderr


async def test_a_drain_of_the_head_node_says_why_it_is_never_safe_to_remove(
    ctl: Ctl, cluster: FakeCluster
) -> None:
    waiting = asyncio.create_task(ctl("drain", "node-a", "--wait"))
    while not cluster.calls:
        await asyncio.sleep(0.01)
    head = cluster.node_by_id["node-a"]
    why = {"state": "drained", "blockers": (), "reason": "the head node: the cluster ends with it"}
    cluster.node_by_id["node-a"] = head.model_copy(update=why)
    done = await waiting
    assert done.exit_code == 5
    assert "node-a is drained, not safe to remove: the head node: the cluster ends with it" in done.stderr


async def test_a_rollout_restarts_one_instance_after_the_other(ctl: Ctl, cluster: FakeCluster) -> None:
    rollout = asyncio.create_task(ctl("rollout", "restart", "--timeout", "9"))
    for number, instance in enumerate(("i0", "i1"), 1):
        while len(cluster.calls) < number:
            await asyncio.sleep(0.01)
        # The next one's turn has not come: this one does not serve yet.
        assert cluster.calls[-1] == ("restart", instance, 9.0, "leave", "ops")
        cluster.update(instance, state="starting", incarnation=1)
        assert not rollout.done()
        cluster.update(instance, state="running", incarnation=1, blockers=())
    done = await rollout
    assert done.exit_code == 0 and "restarted: i0, i1" in done.stderr
    assert len(cluster.calls) == 2


async def test_a_rollout_stops_where_an_instance_was_not_emptied(ctl: Ctl, cluster: FakeCluster) -> None:
    rollout = asyncio.create_task(ctl("rollout", "restart"))
    while not cluster.calls:
        await asyncio.sleep(0.01)
    cluster.update("i0", state="cordoned", reason="not empty after 5.0 s")
    done = await rollout
    assert done.exit_code == 1 and "not empty after 5.0 s" in done.stderr
    assert len(cluster.calls) == 1


def test_waiting_ends_when_the_time_is_up() -> None:
    now, told = [0.0], list[str]()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    watch = Watch(10.0, told.append, clock=lambda: now[0], sleep=sleep)
    with pytest.raises(CtlError, match=r"it was not done within 10 s: half") as caught:
        watch.until(lambda: "none" if now[0] < 5 else "half", "it was not done")
    assert caught.value.code is Exit.NOT_IN_TIME
    assert told == ["none", "half"]


def test_events_are_followed_through_a_restart_of_the_daemon() -> None:
    def event(seq: int) -> Event:
        return Event(seq=seq, time=0.0, kind="test.event")

    gone = CtlError("no answer", Exit.UNREACHABLE)
    streams = iter([[event(1), event(2)], gone, gone, [event(3)], KeyboardInterrupt()])
    asked, told = list[int | None](), list[str]()

    class Api:
        def follow(self, since: int | None) -> list[Event]:
            asked.append(since)
            stream = next(streams)
            if isinstance(stream, BaseException):
                raise stream
            return stream

    seen = []
    with pytest.raises(KeyboardInterrupt):
        for one in follow(cast(AdminApi, Api()), None, told.append, sleep=lambda _: None):
            seen.append(one.seq)
    assert (seen, asked, told) == ([1, 2, 3], [None, 2, 2, 2, 3], ["no answer"])


def texts_of(bundle: Path) -> dict[str, str]:
    with tarfile.open(bundle) as archive:
        return {
            member.name.split("/", 1)[1]: archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in archive
        }


async def test_a_support_bundle_holds_everything_but_secrets(
    ctl: Ctl, cluster: FakeCluster, journal: Journal, log_dir: Path, tmp_path: Path
) -> None:
    (log_dir / "llumnixd.log").write_text("it began\n")
    cluster.logs_of_other_nodes["node-b"] = {"i1": ("serving",), "llumnixd": ("it is another one",)}
    journal.append("test.event", "something happened")
    out = tmp_path / "bundle.tar.gz"
    done = await ctl("support-bundle", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert out.stat().st_mode & 0o777 == 0o600
    texts = texts_of(out)
    assert set(texts) == {
        *(f"{name}.json" for name in ("cluster", "config", "diagnostics", "instances", "nodes")),
        "requests.json",
        "migrations.json",
        "metrics.txt",
        "journal.jsonl",
        "logs/llumnixd.log",
        "logs/node-b/i1.log",
        "logs/node-b/llumnixd.log",
    }
    assert "something happened" in texts["journal.jsonl"]
    assert texts["logs/llumnixd.log"] == "it began\n"
    assert texts["logs/node-b/i1.log"] == "serving\n"
    assert '"***"' in texts["config.json"] and "used_blocks" in texts["diagnostics.json"]
    assert not any("operator-secret" in text for text in texts.values())
    again = await ctl("support-bundle", "--out", str(out))
    assert again.exit_code == 2 and "cannot write" in again.stderr


async def test_what_a_support_bundle_cannot_get_is_replaced_by_its_reason(
    ctl: Ctl,
    cluster: FakeCluster,
    journal: Journal,
    log_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise JournalError("the journal cannot be read: disk I/O error")

    monkeypatch.setattr(journal, "latest", broken)
    (log_dir / "i0.log").mkdir()  # cannot be read as a file
    (log_dir / "i1.log").write_text("it began\n")
    cluster.silent_nodes.add("node-b")
    out = tmp_path / "bundle.tar.gz"
    done = await ctl("support-bundle", "--out", str(out))
    assert done.exit_code == 0, done.output
    texts = texts_of(out)
    assert "disk I/O error" in json.loads(texts["journal.jsonl"])["missing"]
    assert "cannot be read" in json.loads(texts["logs/i0.log"])["missing"]
    assert texts["logs/i1.log"] == "it began\n"
    assert "did not answer" in json.loads(texts["logs/node-b/missing.txt"])["missing"]


async def test_a_support_bundle_that_fails_leaves_no_file(ctl: Ctl, tmp_path: Path) -> None:
    out = tmp_path / "out" / "bundle.tar.gz"
    out.parent.mkdir()
    done = await ctl("support-bundle", "--out", str(out), url="http://127.0.0.1:9")
    assert done.exit_code == 3 and "--offline STATE_DIR" in done.stderr
    assert list(out.parent.iterdir()) == []
    assert (await ctl("support-bundle", "--out", str(out))).exit_code == 0
    assert [path.name for path in out.parent.iterdir()] == ["bundle.tar.gz"]


def test_a_support_bundle_is_made_without_llumnixd(tmp_path: Path) -> None:
    state_dir, out = tmp_path / "state", tmp_path / "bundle.tar.gz"
    (state_dir / "logs").mkdir(parents=True)
    (state_dir / "logs/llumnixd.log").write_text("it began\n")
    (state_dir / "cluster.ledger").write_text("curve-secret")
    (state_dir / "admin.token").write_text("operator-secret")
    journal = Journal(state_dir / "journal.db")
    journal.append("test.event", "something happened", data={"number": 1})
    config = tmp_path / "cluster.toml"
    config.write_text('[model]\npath = "builtin:tiny"\n[http]\n[[http.api_keys]]\nname = "a"\nkey = "sk-1"\n')
    words = ["support-bundle", "--offline", str(state_dir), "--config", str(config), "--out", str(out)]
    done = CliRunner().invoke(app, words)
    journal.close()
    assert done.exit_code == 0, done.output
    texts = texts_of(out)
    event = json.loads(texts["journal.jsonl"])
    assert (event["message"], event["data"]) == ("something happened", {"number": 1})
    assert texts["logs/llumnixd.log"] == "it began\n"
    assert "cluster.ledger" in texts["files.txt"]
    assert '"****"' in texts["config.json"]
    assert not any(secret in text for text in texts.values() for secret in ("-secret", "sk-1"))


def test_an_offline_support_bundle_says_what_is_not_there(tmp_path: Path) -> None:
    out = tmp_path / "bundle.tar.gz"
    done = CliRunner().invoke(app, ["support-bundle", "--offline", str(tmp_path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    texts = texts_of(out)
    assert "unable to open database" in json.loads(texts["journal.jsonl"])["missing"]
    assert "--config" in json.loads(texts["config.json"])["missing"]
    gone = CliRunner().invoke(app, ["support-bundle", "--offline", str(tmp_path / "none")])
    assert gone.exit_code == 2 and "expected llumnixd's state directory" in gone.stderr


def test_a_named_token_is_made_for_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "alice.token"
    done = CliRunner().invoke(app, ["token", "create", "alice", "--file", str(path), "--role", "operator"])
    assert done.exit_code == 0, done.output
    entry = tomllib.loads(done.stdout)
    assert entry == {"admin": {"tokens": [{"name": "alice", "role": "operator", "token_file": str(path)}]}}
    assert len(read_token(path, "test")) >= 32
    config_file = tmp_path / "cluster.toml"
    config_file.write_text(f'[model]\npath = "builtin:tiny"\n{done.stdout}')
    assert [token.name for token in load_config(config_file).admin.tokens] == ["alice"]


def test_completion_is_offered_for_every_command() -> None:
    result = CliRunner().invoke(
        app,
        [],
        prog_name="llumnixctl",
        env={
            "_LLUMNIXCTL_COMPLETE": "complete_bash",
            "COMP_WORDS": "llumnixctl ro",
            "COMP_CWORD": "1",
        },
    )
    assert result.stdout.split() == ["rollout"]


async def test_migrate_says_what_has_begun_what_follows_and_what_stays(
    ctl: Ctl, cluster: FakeCluster
) -> None:
    cluster.add(make_request("r0"))
    cluster.begun = MigrationsBegun(
        id="m1", migrations=("m1", "m2"), following=("1_r0", "2_r0"), refused={"3_r0": "it is held"}
    )
    lines = (await ctl("migrate", "r0")).stderr.splitlines()
    assert lines == [
        "migration m1 is under way",
        "migration m2 is under way",
        "then 1_r0, 2_r0",
        "3_r0 stays: it is held",
    ]
