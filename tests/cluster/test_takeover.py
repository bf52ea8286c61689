"""From one llumnixd to the next, on a real Ray node: what is found again, what is ended and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llumnix.cluster import ledger as ledgers
from llumnix.cluster import leftovers, local_node, ray_driver
from llumnix.cluster.actors import Place
from llumnix.cluster.ledger import KnownEngine, KnownInstance
from llumnix.cluster.takeover import take_over
from llumnix.config import Config, parse_config
from llumnix.errors import StartupError
from llumnix.wire import PeerAddress, ipc_endpoints


class Journal(list[tuple[str, str]]):
    """Kinds and messages of what was recorded."""

    def __call__(self, kind: str, severity: str, target: str, message: str) -> None:
        self.append((kind, message))


def config_of(state_dir: Path, **ray: Any) -> Config:
    return parse_config({"cluster": {"state_dir": str(state_dir)}, "ray": {"num_cpus": 2, **ray}})


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    """Of a cluster of which nothing is left after the test."""
    yield tmp_path
    leftovers.clean_previous_run(tmp_path)


def test_a_living_node_is_used_again_and_a_dead_one_replaced(state_dir: Path) -> None:
    config, journal = config_of(state_dir), Journal()
    node = local_node.obtain(config, journal, kept=False)
    assert local_node.obtain(config, journal, kept=True) == node
    assert journal == []
    (raylet,) = [p for p in leftovers.find(node.run_id) if p.pid == node.raylet_pid]
    raylet.kill()
    raylet.wait(10)
    assert local_node.living(state_dir) is None
    with pytest.raises(StartupError, match="its Ray node is dead"):
        local_node.obtain(config, journal, kept=True)
    other = local_node.obtain(config, journal, kept=False)
    assert other.run_id != node.run_id and other.lives()
    assert leftovers.find(node.run_id) == []
    ((kind, message),) = journal
    assert kind == "cluster.cleaned" and "its Ray node is dead" in message
    local_node.stop(config, other, 5.0)
    assert leftovers.find(other.run_id) == [] and leftovers.read_run(state_dir) is None


def test_a_node_with_other_settings_is_replaced_unless_somebody_keeps_it(state_dir: Path) -> None:
    journal = Journal()
    node = local_node.obtain(config_of(state_dir), journal, kept=False)
    changed = config_of(state_dir, num_cpus=1)
    with pytest.raises(StartupError, match=r"ray\.num_cpus changed"):
        local_node.obtain(changed, journal, kept=True)
    assert node.lives()
    other = local_node.obtain(changed, journal, kept=False)
    assert not node.lives() and other.lives()
    assert "ray.num_cpus changed" in journal[0][1]


def test_a_keeper_is_known_while_it_lives(tmp_path: Path) -> None:
    assert not local_node.is_kept(tmp_path)
    with local_node.keeper_lock(tmp_path):
        assert local_node.is_kept(tmp_path)
    assert not local_node.is_kept(tmp_path)


async def test_actors_go_on_where_the_ledger_knows_them_and_end_otherwise(state_dir: Path) -> None:
    config, journal = config_of(state_dir), Journal()
    node = local_node.obtain(config, journal, kept=False)
    ray_driver.connect(node, config.ray_namespace)
    try:
        pids = start_actors("instance-8", "instance-9")
        fresh = await take_over(config, node, journal)
        assert actors() == set()
        # What they listened at is free.
        assert not any(leftovers.lives(node.run_id, pid) for pid in pids)
        assert (fresh.instances, fresh.run_id) == ((), node.run_id)
        ((kind, message),) = journal
        assert kind == "cluster.not_adopted" and message.endswith("nothing is known of it")

        start_actors("instance-3", "instance-4")
        ledgers.write(state_dir, ledger_with(config, node.run_id, uid=3))
        left = await take_over(config, node, journal)
        assert actors() == {"instance-3"}
        assert [known.uid for known in left.instances] == [3]
        assert journal.pop()[0] == "cluster.adopted"
    finally:
        ray_driver.disconnect()


def start_actors(*names: str) -> list[int]:
    """Their pids."""
    import ray

    class Idle:
        """As our actors are: it tells of its place and its end."""

        def wait_end(self) -> None:
            import threading

            threading.Event().wait()

        def place(self) -> Place:
            import os

            import ray

            return Place(ray.get_runtime_context().get_node_id(), "127.0.0.1", os.getpid())

    options = {"lifetime": "detached", "num_cpus": 0, "max_concurrency": 4}
    started = [ray.remote(Idle).options(name=name, **options).remote() for name in names]
    return [place.pid for place in ray.get([actor.place.remote() for actor in started])]


def actors() -> set[str]:
    import ray

    return set(ray.util.list_named_actors())


def ledger_with(config: Config, run_id: str, uid: int) -> ledgers.Ledger:
    import msgspec

    known = KnownInstance(
        instance="i0",
        uid=uid,
        incarnation=1,
        node="n",
        pid=1,
        cordoned=False,
        engine=KnownEngine(b"", PeerAddress("", b"")),
    )
    ledger = ledgers.new_ledger(config, run_id, ipc_endpoints(Path("/run/x"), 1), next_uid=uid + 1)
    return msgspec.structs.replace(ledger, instances=(known,))
