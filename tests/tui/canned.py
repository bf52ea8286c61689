"""A canned cluster, the same at every run, and a source that gives it to the app."""

import asyncio
import random
from typing import Any

from llumnix.admin.schema import (
    Cluster,
    Counts,
    DrainTotals,
    Event,
    Instance,
    InstanceState,
    Latency,
    Migration,
    MigrationPair,
    MigrationTotals,
    Node,
    Percentiles,
    PolicyNames,
    PriorityClass,
    PriorityLoad,
    Request,
    ScalingBounds,
    Totals,
)
from llumnix_tui.client import AdminError, Interest
from llumnix_tui.commands import Command
from llumnix_tui.snapshot import Snapshot
from llumnix_tui.store import Store

NOW = 1_750_000_000.0
CLASSES = (
    PriorityClass(name="high", engine_priority=-10, headroom_tokens=1600),
    PriorityClass(name="normal", engine_priority=0, headroom_tokens=0),
)
BLOCKS = 2000
STATES: dict[int, InstanceState] = {3: "draining", 5: "cordoned", 11: "starting"}
REASONS = (
    "i2 is the freest (freeness 93.0)",
    "drain of i3",
    "headroom for a high request",
    "source below 12, target above 60",
)


class Canned:
    """A cluster whose figures wander a little with each snapshot."""

    def __init__(
        self, num_instances: int = 4, num_requests: int = 24, num_nodes: int = 1, seed: int = 7
    ) -> None:
        self._random = random.Random(seed)
        self.num_instances, self.num_requests, self.num_nodes = num_instances, num_requests, num_nodes
        self._share = [self._random.uniform(0.2, 0.8) for _ in range(num_instances)]
        self._arrived = [NOW - self._random.uniform(1, 300) for _ in range(num_requests)]
        self._instance_of = [f"i{self._random.randrange(num_instances)}" for _ in range(num_requests)]

    def snapshot(self, at: float = NOW, **changes: Any) -> Snapshot:
        """Return the next snapshot, taken at a time."""
        instances = tuple(self._instance(number) for number in range(self.num_instances))
        requests = tuple(self._request(number, at) for number in range(self.num_requests))
        values: dict[str, Any] = {
            "taken_at": at,
            "cluster": self._cluster(instances, requests, at),
            "instances": instances,
            "nodes": self._nodes(),
            "migrations": self._migrations(at),
            "migration_totals": self._migration_totals(),
            "requests": requests,
            "logs": {"i0": ("10:00:01 engine up in 3.2 s", "10:00:02 serving")},
        }
        return Snapshot(**{**values, **changes})

    def events(self) -> tuple[Event, ...]:
        """Return a few entries of the journal."""
        return (
            Event(seq=1, time=NOW - 60, kind="instance.ready", target="instance/i0", message="serves"),
            Event(
                seq=2,
                time=NOW - 30,
                kind="migration.committed",
                target="request/cmpl-1",
                message="i3 to i1, downtime 3.1 ms; drain of i3",
                data={"source": "i3", "target": "i1"},
            ),
            Event(
                seq=3,
                time=NOW - 9,
                kind="operator.drain",
                actor="ops",
                target="instance/i3",
                message="ops: drain instance/i3: done",
            ),
            Event(
                seq=4,
                time=NOW - 2,
                kind="instance.died",
                severity="error",
                target="instance/i2",
                message="killed by signal 9",
            ),
        )

    def _instance(self, number: int) -> Instance:
        share = self._share[number] = min(
            max(self._share[number] + self._random.uniform(-0.03, 0.03), 0.05), 0.97
        )
        state = STATES.get(number, "running")
        node = f"node-{number * self.num_nodes // self.num_instances}"
        if state == "starting":
            return Instance(id=f"i{number}", node=node, state=state, stage="loading weights", started_s=4.0)
        high, normal, waiting = number % 3, 4 + int(share * 20), int(max(share - 0.7, 0) * 20)
        used, headroom = int(BLOCKS * share), 100 if high else 0
        return Instance(
            id=f"i{number}",
            incarnation=1,
            pid=4000 + number,
            node=node,
            state=state,
            uptime_s=3600.0,
            freeness=None if state == "draining" else (BLOCKS - used - headroom) / (high + normal),
            block_size=16,
            kv_blocks_total=BLOCKS,
            kv_blocks_used=used,
            running=high + normal,
            waiting=waiting,
            kv_blocks_virtual=None if state == "draining" else used + headroom,
            kv_blocks_headroom=headroom,
            priorities=(
                PriorityLoad(name="high", running=high, waiting=0, kv_blocks=high * 20),
                PriorityLoad(name="normal", running=normal, waiting=waiting, kv_blocks=used - high * 20),
            ),
            step_ms=8 + 20 * share,
            tokens_per_s=(high + normal) * 30.0 * self._random.uniform(0.9, 1.1),
            migrations_in=number,
            migrations_out=2 * number % 7,
            drain=DrainTotals(since=NOW - 60, moved=640, aborted=2) if state == "draining" else None,
            blockers=("3 requests run", "1 migration is under way") if state == "draining" else (),
            reason="cordoned by ops" if state == "cordoned" else "",
        )

    def _request(self, number: int, at: float) -> Request:
        age = at - self._arrived[number]
        queued = number % 9 == 8
        return Request(
            id=f"cmpl-{number}",
            response_id=f"cmpl-{number}",
            instance=self._instance_of[number],
            api_server="api0",
            priority="high" if number % 7 == 0 else "normal",
            state="queued" if queued else "migrating" if number % 11 == 5 else "running",
            arrived_at=self._arrived[number],
            age_s=age,
            prompt_tokens=100 + 37 * number % 4000,
            output_tokens=0 if queued else int(age * 20),
            kv_blocks=0 if queued else int((100 + 37 * number % 4000 + age * 20) // 16),
            migrations=number % 4,
            reason=REASONS[number % 4],
        )

    def _nodes(self) -> tuple[Node, ...]:
        of = {f"node-{n}": [] for n in range(self.num_nodes)}  # type: dict[str, list[str]]
        for number in range(self.num_instances):
            of[f"node-{number * self.num_nodes // self.num_instances}"].append(f"i{number}")
        return tuple(
            Node(
                id=node,
                address=f"10.0.0.{place + 1}",
                state="ready",
                head=place == 0,
                cpus=16,
                gpus=8,
                instances=tuple(ids),
            )
            for place, (node, ids) in enumerate(of.items())
        )

    def _migrations(self, at: float) -> tuple[Migration, ...]:
        running = Migration(
            id="m9",
            request="cmpl-5",
            source="i3",
            target="i1",
            reason="drain of i3",
            state="copying",
            started_at=at - 0.4,
            stages=2,
            blocks_total=120,
            blocks_sent=70,
            blocks_skipped=20,
            bytes=70 << 20,
            copy_ms=310.0,
        )
        ended = [
            Migration(
                id=f"m{8 - number}",
                request=f"cmpl-{number}",
                source=f"i{number % 3}",
                target=f"i{(number + 1) % 4}",
                reason=REASONS[number % 4],
                state="aborted" if number == 2 else "committed",
                why="the target has no room" if number == 2 else "",
                started_at=NOW - 20 * number - 12,
                ended_at=NOW - 20 * number - 11,
                stages=3,
                blocks_total=80,
                blocks_sent=60 + number,
                blocks_skipped=20,
                bytes=(60 + number) << 20,
                copy_ms=400.0,
                downtime_ms=None if number == 2 else 2.5 + number / 10,
            )
            for number in range(8)
        ]
        return (running, *ended)

    def _migration_totals(self) -> MigrationTotals:
        pairs = (("i0", "i1", 512), ("i1", "i2", 377), ("i2", "i3", 301), ("i3", "i1", 13))
        return MigrationTotals(
            since=NOW - 7200,
            pairs=tuple(MigrationPair(source=s, target=t, committed=n, aborted=1) for s, t, n in pairs),
        )

    def _cluster(self, instances: tuple[Instance, ...], requests: tuple[Request, ...], at: float) -> Cluster:
        states: dict[InstanceState, int] = {}
        for item in instances:
            states[item.state] = states.get(item.state, 0) + 1
        by_state = [request.state for request in requests]
        return Cluster(
            name="canned",
            version="1.0",
            state="serving",
            uptime_s=at - NOW + 7200,
            model="tiny-llama",
            endpoint_url="http://127.0.0.1:8000",
            policies=PolicyNames(
                scheduler="llumnix+", dispatch="freeness", rescheduling=True, autoscale=True
            ),
            scaling=ScalingBounds(min=2, max=64, wanted=self.num_instances),
            counts=Counts(
                instances=states,
                nodes=self.num_nodes,
                api_servers=1,
                requests_queued=by_state.count("queued"),
                requests_running=by_state.count("running"),
                requests_migrating=by_state.count("migrating"),
                migrations_active=1,
            ),
            totals=Totals(
                migrations_committed=1203, migrations_aborted=4, restarts=1, migrated_bytes=93 << 30
            ),
            priorities=CLASSES,
            latency=Latency(
                window_s=60,
                ttft_ms=Percentiles(p50=41.2, p90=88.0, p99=230.5),
                tpot_ms=Percentiles(p50=18.4, p90=24.1, p99=31.9),
            ),
        )


class CannedSource:
    """Gives what a test puts into it, and remembers the commands that it was sent."""

    def __init__(self, *snapshots: Snapshot, events: tuple[Event, ...] = (), role: str = "operator") -> None:
        self.interest = Interest()
        self.name = "http://127.0.0.1:8001"
        self.sent: list[Command] = []
        self.refusal: AdminError | None = None
        self._snapshots, self._events, self._role = snapshots, events, role

    async def run(self, store: Store) -> None:
        store.add_events(self._events)
        for snapshot in self._snapshots:
            store.take(snapshot)
        await asyncio.Event().wait()

    def wake(self) -> None:
        pass

    async def may_act(self) -> bool:
        return self._role == "operator"

    async def send(self, command: Command) -> None:
        self.sent.append(command)
        if self.refusal is not None:
            raise self.refusal
