"""A cluster in memory that implements ClusterControl: commands change its state as the real one would."""

import asyncio
from collections import Counter
from typing import Any

from llumnix.admin.control import ClusterControl, MigrationUnavailableError
from llumnix.admin.schema import (
    ApiServer,
    Cluster,
    ClusterState,
    Counts,
    Diagnostics,
    DrainOptions,
    Instance,
    Latency,
    Migration,
    MigrationPair,
    MigrationsBegun,
    MigrationTotals,
    Node,
    Percentiles,
    PolicyNames,
    PriorityClass,
    PriorityLoad,
    Request,
    ScalingBounds,
    TargetKind,
    Totals,
)
from llumnix.errors import ConfigError, RefusedError, UnknownTargetError

CLASSES = (
    PriorityClass(name="high", engine_priority=-10, headroom_tokens=1600),
    PriorityClass(name="normal", engine_priority=0, headroom_tokens=0),
)
MAX_INSTANCES = 4


def make_instance(instance_id: str, node: str = "node-a", **changes: Any) -> Instance:
    """Return a running instance with some load."""
    load = PriorityLoad(name="normal", running=3, waiting=1, kv_blocks=40)
    values: dict[str, Any] = {
        "id": instance_id,
        "pid": 4000,
        "node": node,
        "last_node": node,
        "state": "running",
        "freeness": 17.5,
        "block_size": 16,
        "kv_blocks_total": 100,
        "kv_blocks_used": 40,
        "kv_blocks_virtual": 55,
        "kv_blocks_headroom": 10,
        "running": 3,
        "waiting": 1,
        "priorities": (load,),
        "step_ms": 8.0,
        "tokens_per_s": 375.0,
        "restarts": 2,
    }
    return Instance(**{**values, **changes})


def make_request(request_id: str, **changes: Any) -> Request:
    """Return a running request."""
    values: dict[str, Any] = {
        "id": request_id,
        "instance": "i0",
        "priority": "normal",
        "state": "running",
        "arrived_at": 1000.0,
        "age_s": 2.0,
    }
    return Request(**{**values, **changes})


class FakeCluster:
    """State to set, commands to watch; see ClusterControl for the meaning of the methods."""

    def __init__(self) -> None:
        self.instance_by_id = {i.id: i for i in (make_instance("i0"), make_instance("i1", node="node-b"))}
        self.node_by_id = {
            "node-a": Node(
                id="node-a", address="10.0.0.1", state="ready", head=True, cpus=8, instances=("i0",)
            ),
            "node-b": Node(id="node-b", address="10.0.0.2", state="ready", cpus=8, instances=("i1",)),
        }
        self.request_by_id: dict[str, Request] = {}
        self.migration_list: list[Migration] = []
        self.begun: MigrationsBegun | None = None
        self.readiness = (True, "")
        self.state: ClusterState = "serving"
        self.calls: list[tuple[Any, ...]] = []
        self.num_looks = 0
        """At the instances."""
        self.fault: Exception | None = None
        self.logs_of_other_nodes: dict[str, dict[str, tuple[str, ...]]] = {}
        self.silent_nodes: set[str] = set()
        self.log_gate = asyncio.Event()
        self.log_gate.set()

    def add(self, *requests: Request) -> None:
        self.request_by_id.update({request.id: request for request in requests})

    def update(self, instance_id: str, **changes: Any) -> None:
        self._set("instance", instance_id, **changes)

    def cluster(self) -> Cluster:
        if self.fault is not None:
            raise self.fault
        return Cluster(
            name="fake",
            version="0.0",
            state=self.state,
            uptime_s=12.0,
            model="tiny",
            endpoint_url="http://127.0.0.1:8000",
            policies=PolicyNames(
                scheduler="llumnix+", dispatch="freeness", rescheduling=True, autoscale=False
            ),
            scaling=ScalingBounds(min=1, max=MAX_INSTANCES, wanted=2),
            counts=Counts(instances=dict(Counter(i.state for i in self.instance_by_id.values())), nodes=2),
            totals=Totals(
                migrations_committed=5,
                migrations_aborted=1,
                migrated_bytes=4096,
                migration_downtime_ms=12.5,
            ),
            latency=Latency(window_s=60.0, ttft_ms=Percentiles(p50=20.0, p90=40.0, p99=80.0)),
            priorities=CLASSES,
            api_servers=(ApiServer(id="a0", state="serving", restarts=1),),
        )

    def instances(self) -> list[Instance]:
        self.num_looks += 1
        return list(self.instance_by_id.values())

    def nodes(self) -> list[Node]:
        return list(self.node_by_id.values())

    def requests(self) -> list[Request]:
        return list(self.request_by_id.values())

    def migrations(self) -> list[Migration]:
        return list(self.migration_list)

    def migration_totals(self) -> MigrationTotals:
        pair = MigrationPair(source="i0", target="i1", committed=5, aborted=1)
        return MigrationTotals(since=1000.0, pairs=(pair,))

    def ready(self) -> tuple[bool, str]:
        return self.readiness

    def config(self) -> dict[str, Any]:
        return {"cluster": {"name": "fake"}, "http": {"api_keys": [{"name": "team-a", "key": "***"}]}}

    def diagnostics(self) -> Diagnostics:
        return Diagnostics(versions={"llumnix": "0.0"}, reports={"i0": {"used_blocks": 40}})

    def own_node(self) -> str:
        return "node-a"

    async def log_names(self, node_id: str) -> tuple[str, ...]:
        return tuple(self._logs_of(node_id))

    async def log_tail(self, node_id: str, name: str, num_lines: int) -> tuple[str, ...]:
        await self.log_gate.wait()
        if name not in self._logs_of(node_id):
            raise UnknownTargetError(f"there is no log of {name!r} on node {node_id}")
        return self._logs_of(node_id)[name][-num_lines:]

    def _logs_of(self, node_id: str) -> dict[str, tuple[str, ...]]:
        if node_id in self.silent_nodes:
            raise RefusedError(f"node {node_id} did not answer within 5 s")
        return self.logs_of_other_nodes.get(node_id, {})

    async def scale(self, count: int, actor: str) -> None:
        self.calls.append(("scale", count, actor))
        if count > MAX_INSTANCES:
            raise RefusedError(f"instances.max is {MAX_INSTANCES}")

    async def add_instances(self, count: int, actor: str) -> list[str]:
        self.calls.append(("add_instances", count, actor))
        if len(self.instance_by_id) + count > MAX_INSTANCES:
            raise RefusedError(f"instances.max is {MAX_INSTANCES}")
        ids = [f"i{len(self.instance_by_id) + index}" for index in range(count)]
        self.instance_by_id.update({i: make_instance(i, state="starting", stage="imports") for i in ids})
        return ids

    async def remove_instance(self, instance_id: str, actor: str) -> None:
        self.calls.append(("remove_instance", instance_id, actor))
        self._set("instance", instance_id, state="draining", freeness=float("-inf"))

    async def cordon(self, kind: TargetKind, target_id: str, actor: str) -> None:
        self.calls.append(("cordon", kind, target_id, actor))
        self._set(kind, target_id, state="cordoned")

    async def uncordon(self, kind: TargetKind, target_id: str, actor: str) -> None:
        self.calls.append(("uncordon", kind, target_id, actor))
        self._set(kind, target_id, state="running" if kind == "instance" else "ready")

    async def drain(self, kind: TargetKind, target_id: str, options: DrainOptions, actor: str) -> None:
        self.calls.append(("drain", kind, target_id, options.timeout_s, options.on_timeout, actor))
        self._set(kind, target_id, state="draining", blockers=("3 requests run",))

    async def restart(self, instance_id: str, options: DrainOptions, actor: str) -> None:
        self.calls.append(("restart", instance_id, options.timeout_s, options.on_timeout, actor))
        self._set("instance", instance_id, state="draining", blockers=("3 requests run",))

    async def terminate(self, kind: TargetKind, target_id: str, deadline_s: float, actor: str) -> None:
        self.calls.append(("terminate", kind, target_id, deadline_s, actor))
        self._set(kind, target_id, state="draining")

    async def set_priority(self, request_id: str, class_name: str, actor: str) -> Request:
        self.calls.append(("set_priority", request_id, class_name, actor))
        if class_name not in {priority.name for priority in CLASSES}:
            raise ConfigError(f"priority: {class_name!r} is no class, expected high or normal")
        changed = self._children(request_id)[0].model_copy(update={"priority": class_name})
        self.add(changed)
        return changed

    async def abort_request(self, request_id: str, actor: str) -> None:
        self.calls.append(("abort_request", request_id, actor))
        for child in self._children(request_id):
            del self.request_by_id[child.id]

    async def migrate(self, request_id: str, to: str | None, actor: str) -> MigrationsBegun:
        self.calls.append(("migrate", request_id, to, actor))
        self._children(request_id)
        if self.begun is not None:
            return self.begun
        raise MigrationUnavailableError("live migration is not built into this release")

    def _children(self, request_id: str) -> list[Request]:
        found = [r for r in self.request_by_id.values() if request_id in (r.id, r.response_id)]
        if not found:
            raise UnknownTargetError(f"there is no unfinished request {request_id!r}")
        return found

    def _set(self, kind: TargetKind, target_id: str, **changes: Any) -> None:
        table: dict[str, Any] = dict(self.instance_by_id if kind == "instance" else self.node_by_id)
        if target_id not in table:
            raise UnknownTargetError(f"there is no {kind} {target_id!r}")
        # Through the constructor, which validates, as the real manager builds its answers.
        table[target_id] = type(table[target_id])(**{**dict(table[target_id]), **changes})
        if kind == "instance":
            self.instance_by_id = table
        else:
            self.node_by_id = table


def as_control(cluster: FakeCluster) -> ClusterControl:
    """Return the cluster as its interface, for the type checker to compare the two."""
    return cluster
