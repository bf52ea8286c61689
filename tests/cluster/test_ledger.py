"""What one llumnixd writes down for the next, and when the next can go on from it."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from llumnix.cluster import ledger as ledgers
from llumnix.cluster.ledger import KnownApiServer, KnownEngine, Ledger
from llumnix.config import parse_config
from llumnix.core.events import (
    AddInstances,
    Cordon,
    Drain,
    DrainOrder,
    InstanceDied,
    InstancePlaced,
    InstanceReady,
)
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import SchedulerSettings
from llumnix.wire import CurveKeys, PeerAddress, ipc_endpoints

RUN_ID = "00ff00ff00ff"
DOCUMENT = {"engine": {"max_model_len": 8192}, "http": {"api_keys": [{"name": "a", "key": "secret-of-a"}]}}
ENGINES = {uid: KnownEngine(b"ready", PeerAddress(f"ipc://peer{uid}", b"secret")) for uid in range(1, 6)}


def new(document: dict = DOCUMENT) -> Ledger:
    endpoints = msgspec.structs.replace(ipc_endpoints(Path("/run/x"), 2), curve=CurveKeys("public", "secret"))
    return ledgers.new_ledger(parse_config(document), RUN_ID, endpoints, next_uid=1)


def of(scheduler: Scheduler, ledger: Ledger) -> Ledger:
    server = KnownApiServer(0, "api-server-0-ab", 77)
    version = scheduler.table().version
    state = {"lora:1": (b"call",)}
    return ledger.now(scheduler.instances(), version, ENGINES, (server,), state, scheduler.cordoned_nodes())


@pytest.fixture
def scheduler() -> Scheduler:
    """Of four instances, uids 1 to 4: i0 runs, i1 is cordoned, i2 loads, i3 is drained to be removed."""
    made = Scheduler(SchedulerSettings())
    made.handle(AddInstances(4), 0.0)
    for uid in (1, 2, 3, 4):
        made.handle(InstancePlaced(uid, "n0", 1000 + uid), 0.0)
    for uid in (1, 2, 4):
        made.handle(InstanceReady(uid), 0.0)
    made.handle(Cordon("i1"), 0.0)
    made.handle(Drain("i3", 50.0, remove=True), 0.0)
    return made


def test_everything_that_is_to_stay_is_written_down(scheduler: Scheduler) -> None:
    ledger = of(scheduler, new())
    known = {entry.instance: entry for entry in ledger.instances}
    assert {name: entry.engine is not None for name, entry in known.items()} == {
        "i0": True,
        "i1": True,
        "i2": False,
        "i3": True,
    }
    assert {name for name, entry in known.items() if entry.cordoned} == {"i1", "i3"}
    drain = known["i3"].drain
    assert drain is not None and (drain.deadline, drain.remove) == (50.0, True)
    assert known["i0"].drain is None
    assert (ledger.next_uid, ledger.next_instance) == (5, 4)
    assert ledger.table_version == scheduler.table().version > 0
    assert known["i0"].adopted().pid == 1001


def test_numbers_of_the_dead_are_not_forgotten(scheduler: Scheduler) -> None:
    ledger = of(scheduler, new())
    scheduler.handle(InstanceDied(4, "removed"), 1.0)
    later = of(scheduler, ledger)
    assert "i3" not in {entry.instance for entry in later.instances}
    assert (later.next_uid, later.next_instance) == (5, 4)


def test_a_drain_is_written_down_with_all_that_was_ordered(scheduler: Scheduler) -> None:
    scheduler.handle(Drain("i0", 20.0, restart=True, abort_left=True), 3.0)
    (known, *_) = of(scheduler, new()).instances
    assert known.drain == DrainOrder(3.0, 20.0, remove=False, restart=True, abort_left=True)
    assert known.adopted().drain == known.drain


def test_a_ledger_without_drains_tells_of_none(scheduler: Scheduler, tmp_path: Path) -> None:
    older = msgspec.msgpack.decode(msgspec.msgpack.encode(of(scheduler, new())))
    for known in older["instances"]:
        del known["drain"]
    (tmp_path / ledgers.LEDGER_FILE_NAME).write_bytes(msgspec.msgpack.encode(older))
    ledger = ledgers.read(tmp_path)
    assert ledger is not None and [known.drain for known in ledger.instances] == [None] * 4


def test_it_is_read_back_as_it_was_and_by_nobody_else(scheduler: Scheduler, tmp_path: Path) -> None:
    ledger = of(scheduler, new())
    ledgers.write(tmp_path, ledger)
    assert ledgers.read(tmp_path) == ledger
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"secret-of-a" not in file.read_bytes()
    ledgers.forget(tmp_path)
    assert ledgers.read(tmp_path) is None


def test_one_that_makes_no_sense_is_none(tmp_path: Path) -> None:
    (tmp_path / ledgers.LEDGER_FILE_NAME).write_bytes(b"\x81\x00")
    assert ledgers.read(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"admin": {"port": 9000}, "instances": {"count": 4}, "logging": {"level": "debug"}}, None),
        ({"engine": {"max_model_len": 4096}}, "engine.max_model_len changed"),
        ({"http": {"api_keys": [{"name": "a", "key": "another"}]}}, "http.api_keys changed"),
        (
            {"migration": {"max_stages": 4}, "engine": {}},
            "engine.max_model_len, migration.max_stages changed",
        ),
    ],
)
def test_a_cluster_is_taken_over_only_with_the_settings_its_processes_have(
    changes: dict, reason: str | None
) -> None:
    config = parse_config({**DOCUMENT, **changes})
    assert ledgers.why_not_adoptable(new(), config, RUN_ID) == reason


def test_nothing_unknown_is_taken_over() -> None:
    config = parse_config(DOCUMENT)
    assert "nothing is known" in str(ledgers.why_not_adoptable(None, config, RUN_ID))
    assert "another Ray node" in str(ledgers.why_not_adoptable(new(), config, "ffff"))
    older = msgspec.structs.replace(new(), version="0.0.0")
    assert "llumnix 0.0.0" in str(ledgers.why_not_adoptable(older, config, RUN_ID))


def test_a_setting_that_changed_is_known_until_the_next_llumnixd_has_it() -> None:
    config = parse_config({**DOCUMENT, "instances": {"count": 4}})
    assert new().differs_in("instances.count", config)
    assert not new().differs_in("admin.port", config)
    assert not new().under(config).differs_in("instances.count", config)
