"""What the admin API reads of the cluster and does to it (llumnix.admin.control.ClusterControl)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from llumnix import __version__
from llumnix.admin import schema
from llumnix.cluster.manager import ClusterManager
from llumnix.cluster.migration_log import MigrationEntry, MigrationLog
from llumnix.cluster.nodes import NodeList
from llumnix.config import effective
from llumnix.core.dispatch import RULE_OF_POLICY
from llumnix.core.events import (
    AddInstances,
    CommandRefused,
    Cordon,
    Drain,
    Event,
    InstanceState,
    Uncordon,
    UnknownInstance,
)
from llumnix.core.member import InstanceView
from llumnix.errors import ConfigError, RefusedError, UnknownTargetError
from llumnix.wire import RequestRow

_EPOCH = re.compile(r"@\d+\.\d+$")
_CHILD = re.compile(r"^\d+_")
_UNIQUE_SUFFIX = re.compile(r"-[0-9a-f]{8}$")
_PROMPT_INDEX = re.compile(r"^(cmpl-.+)-\d+$")


class LiveControl:
    """Implements ClusterControl over the manager's memory."""

    def __init__(self, manager: ClusterManager, nodes: NodeList, endpoint_url: str) -> None:
        self._manager = manager
        self._nodes = nodes
        self._endpoint_url = endpoint_url
        self._started = time.monotonic()
        self._class_names = {c.engine_priority: name for name, c in manager.config.priorities.items()}
        self.stopping = False

    # ---- reading ----------------------------------------------------------------------------------------

    def cluster(self) -> schema.Cluster:
        config, views = self._manager.config, self._manager.scheduler.instances()
        state, reason = self._state(views)
        return schema.Cluster(
            name=config.cluster.name,
            version=__version__,
            state=state,
            reason=reason,
            uptime_s=time.monotonic() - self._started,
            model=config.served_name,
            endpoint_url=self._endpoint_url,
            policies=schema.PolicyNames(
                scheduler=config.scheduler.policy,
                dispatch=RULE_OF_POLICY[config.scheduler.policy],
                rescheduling=False,
                autoscale=False,
            ),
            scaling=schema.ScalingBounds(
                min=config.instances.min, max=config.instances.max, wanted=len(_wanted(views))
            ),
            counts=self._counts(views),
            totals=_totals_of(views, self._manager.migrations),
            priorities=tuple(
                schema.PriorityClass(
                    name=name, engine_priority=c.engine_priority, headroom_tokens=c.headroom_tokens
                )
                for name, c in config.priorities.items()
            ),
            api_servers=self._api_servers(),
        )

    def instances(self) -> list[schema.Instance]:
        now = time.monotonic()
        return [self._instance(view, now) for view in self._manager.scheduler.instances()]

    def nodes(self) -> list[schema.Node]:
        return self._nodes.views(self.instances())

    def requests(self) -> list[schema.Request]:
        now = time.time()
        return [self._request(uid, row, now) for uid, row in self._rows()]

    def migrations(self) -> list[schema.Migration]:
        return [self._migration(entry) for entry in self._manager.migrations.entries()]

    def ready(self) -> tuple[bool, str]:
        state, reason = self._state(self._manager.scheduler.instances())
        return state == "serving", reason

    def config(self) -> dict[str, Any]:
        return effective(self._manager.config, mask_secrets=True)

    def _state(self, views: list[InstanceView]) -> tuple[schema.ClusterState, str]:
        if self.stopping:
            return "stopping", "llumnixd was told to stop"
        serving = [v for v in views if v.state is InstanceState.RUNNING]
        wanted = _wanted(views)
        not_up = [v.instance for v in wanted if v not in serving]
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
        return schema.Counts(
            instances=by_state,
            nodes=len(self.nodes()),
            api_servers=sum(server.serving for server in self._manager.api_servers.states),
            requests_queued=sum(report.waiting for report in reports),
            requests_running=sum(report.running for report in reports),
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
        serves = view.state in (
            InstanceState.RUNNING,
            InstanceState.CORDONED,
            InstanceState.DRAINING,
            InstanceState.DRAINED,
        )
        load = {} if report is None else dict(report.classes)
        return schema.Instance(
            id=view.instance,
            incarnation=view.incarnation,
            pid=view.pid,
            node=place.node_id if place else view.node,
            state=view.state.value,
            reason=view.reason,
            stage=self._manager.instances.stages.get(view.uid, "") if starting else "",
            started_s=now - view.since if starting else None,
            uptime_s=now - view.ready_at if serves and view.ready_at is not None else None,
            freeness=view.freeness,
            block_size=report.block_size if report else None,
            kv_blocks_total=report.total_blocks if report else 0,
            kv_blocks_used=report.used_blocks if report else 0,
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
            blockers=view.blockers,
            safe_to_remove=view.state in (InstanceState.DRAINED, InstanceState.DEAD),
        )

    def _request(self, uid: int, row: RequestRow, now: float) -> schema.Request:
        return schema.Request(
            id=internal_id(row.request_id),
            response_id=response_id(row.request_id),
            instance=self._instance_of(uid),
            api_server=f"api{row.api_server}",
            priority=self._class_name(row.priority),
            state=self._request_state(row),
            arrived_at=row.arrival_s,
            age_s=max(0.0, now - row.arrival_s),
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            kv_blocks=row.kv_blocks,
            reason=f"preempted {row.preemptions} times" if row.preemptions else "",
        )

    def _migration(self, entry: MigrationEntry) -> schema.Migration:
        news = entry.news
        return schema.Migration(
            id=news.migration,
            request=internal_id(news.request_id),
            source=self._instance_of(news.source) or f"#{news.source}",
            target=self._instance_of(news.target) or f"#{news.target}",
            reason=news.reason,
            state=news.state,
            why=news.why,
            started_at=entry.started_at,
            ended_at=entry.ended_at,
            stages=news.stages,
            blocks_sent=news.blocks_sent,
            blocks_skipped=news.blocks_skipped,
            bytes=news.num_bytes,
            copy_ms=news.copy_ms,
            downtime_ms=news.downtime_ms,
        )

    def _request_state(self, row: RequestRow) -> schema.RequestState:
        if row.request_id in self._manager.migrations.moving():
            return "migrating"
        return "running" if row.running else "queued"

    def _rows(self) -> Iterator[tuple[int, RequestRow]]:
        for uid, rows in self._manager.rows.items():
            for row in rows:
                yield uid, row

    def _instance_of(self, uid: int) -> str | None:
        return next((v.instance for v in self._manager.scheduler.instances() if v.uid == uid), None)

    def _class_name(self, engine_priority: int) -> str:
        return self._class_names.get(engine_priority, str(engine_priority))

    # ---- commands ---------------------------------------------------------------------------------------

    async def add_instances(self, count: int, actor: str) -> list[str]:
        before = {view.instance for view in self._manager.scheduler.instances()}
        self._do(AddInstances(count))
        return [v.instance for v in self._manager.scheduler.instances() if v.instance not in before]

    async def remove_instance(self, instance_id: str, actor: str) -> None:
        self._do(Drain(instance_id, float("inf"), remove=True))

    async def cordon(self, kind: schema.TargetKind, target_id: str, actor: str) -> None:
        self._do_all(Cordon(instance) for instance in self._targets(kind, target_id))

    async def uncordon(self, kind: schema.TargetKind, target_id: str, actor: str) -> None:
        self._do_all(Uncordon(instance) for instance in self._targets(kind, target_id))

    async def drain(
        self, kind: schema.TargetKind, target_id: str, timeout_s: float | None, actor: str
    ) -> None:
        limit = float("inf") if timeout_s is None else timeout_s
        self._do_all(Drain(instance, limit) for instance in self._targets(kind, target_id))

    async def set_priority(self, request_id: str, class_name: str, actor: str) -> schema.Request:
        classes = self._manager.config.priorities
        if class_name not in classes:
            raise ConfigError(f"priority is {class_name!r}, expected one of {', '.join(classes)}")
        wanted = classes[class_name].engine_priority
        found = self._find(request_id)
        for uid, row in found:
            await self._manager.set_priority(uid, row.request_id, wanted)
        uid, row = found[0]
        return self._request(uid, row, time.time()).model_copy(update={"priority": class_name})

    async def abort_request(self, request_id: str, actor: str) -> None:
        reason = f"aborted by operator {actor}"
        refusals: list[str] = []
        found = self._find(request_id)
        for _, row in found:
            try:
                await self._manager.abort_request(row.api_server, internal_id(row.request_id), reason)
            except RefusedError as refused:
                # A child of n > 1 ended with its siblings.
                refusals.append(str(refused))
        if len(refusals) == len(found):
            raise RefusedError(refusals[0])

    async def migrate(self, request_id: str, to: str | None, actor: str) -> str:
        source, row = self._find(request_id)[0]
        target = self._choose_target(source) if to is None else self._view(to)
        if target.state is not InstanceState.RUNNING:
            raise RefusedError(f"instance {target.instance} is {target.state}: it takes no requests")
        return await self._manager.migrate(
            source, row.request_id, target.uid, f"asked for by operator {actor}"
        )

    def _choose_target(self, source: int) -> InstanceView:
        """The freest other instance that takes requests."""
        views = self._manager.scheduler.instances()
        able = [v for v in views if v.state is InstanceState.RUNNING and v.uid != source]
        if not able:
            raise RefusedError("no other instance takes requests")
        return max(able, key=lambda view: view.freeness or 0.0)

    def _view(self, instance: str) -> InstanceView:
        try:
            return self._manager.scheduler.instance(instance)
        except UnknownInstance as unknown:
            raise UnknownTargetError(str(unknown)) from None

    def _targets(self, kind: schema.TargetKind, target_id: str) -> list[str]:
        if kind == "instance":
            return [target_id]
        node = next((n for n in self.nodes() if n.id == target_id), None)
        if node is None:
            raise UnknownTargetError(f"there is no node {target_id}")
        if not node.instances:
            raise RefusedError(f"node {target_id} has no instances")
        return list(node.instances)

    def _find(self, request_id: str) -> list[tuple[int, RequestRow]]:
        found = [
            (uid, row)
            for uid, row in self._rows()
            if request_id in (internal_id(row.request_id), response_id(row.request_id))
        ]
        if not found:
            raise UnknownTargetError(f"there is no unfinished request {request_id}")
        return found

    def _do_all(self, commands: Iterable[Event]) -> None:
        """The same command on several instances; one that refuses does not keep the others from it."""
        refusals: list[RefusedError] = []
        for command in commands:
            try:
                self._do(command)
            except RefusedError as refused:
                refusals.append(refused)
        if refusals:
            raise RefusedError("; ".join(str(refused) for refused in refusals))

    def _do(self, command: Event) -> None:
        try:
            self._manager.handle(command)
        except UnknownInstance as unknown:
            raise UnknownTargetError(str(unknown)) from None
        except CommandRefused as refused:
            raise RefusedError(str(refused)) from None


def internal_id(of_engine: str) -> str:
    """vLLM's own id of the request that an engine-side id is an epoch of."""
    return _EPOCH.sub("", of_engine)


def response_id(request_id: str) -> str:
    """The OpenAI response id of an engine-side id (vLLM: CHILD_ before, -UNIQUE after, cmpl-X-PROMPT)."""
    external = _UNIQUE_SUFFIX.sub("", _CHILD.sub("", internal_id(request_id)))
    of_prompt = _PROMPT_INDEX.match(external)
    return of_prompt[1] if of_prompt else external


def _wanted(views: list[InstanceView]) -> list[InstanceView]:
    """Instances that are meant to stay and take requests."""
    gone = (InstanceState.DEAD, InstanceState.STOPPING)
    return [v for v in views if v.state not in gone and not v.removing]


def _totals_of(views: list[InstanceView], migrations: MigrationLog) -> schema.Totals:
    reports = [view.report for view in views if view.report is not None]
    return schema.Totals(
        kv_blocks_total=sum(report.total_blocks for report in reports),
        kv_blocks_used=sum(report.used_blocks for report in reports),
        tokens_per_s=sum(report.tokens_per_s for report in reports),
        restarts=sum(view.restarts for view in views),
        migrations_committed=migrations.committed_in.total(),
        migrations_aborted=migrations.num_aborted,
    )
