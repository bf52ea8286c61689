"""The cluster manager: brings events to core.Scheduler and carries out its actions. It decides nothing."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from llumnix.cluster.api_server_pool import ApiServerPool
from llumnix.cluster.control_socket import ControlSocket
from llumnix.cluster.engine_state import EngineState
from llumnix.cluster.instance_pool import InstancePool
from llumnix.cluster.migration_log import MigrationLog
from llumnix.config import Config
from llumnix.core.events import (
    Action,
    AddInstances,
    Event,
    InstanceDied,
    InstanceReady,
    KillInstance,
    MoveRequests,
    PublishTable,
    Record,
    Reported,
    StartInstance,
    StopInstance,
    Tick,
)
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import SchedulerSettings
from llumnix.errors import RefusedError
from llumnix.log import get_logger
from llumnix.wire import (
    AbortRequest,
    ApiServerServes,
    ApiServerUp,
    Done,
    Endpoints,
    EngineServes,
    EngineUp,
    Heartbeat,
    LostContact,
    MigrationNews,
    Move,
    MoveAway,
    PeerAddress,
    PeerGone,
    Replay,
    Report,
    RequestRow,
    RequestTable,
    SetPriority,
    StateOp,
    StopEngine,
    StopServing,
    Table,
    TableEntry,
    ToManager,
)

logger = get_logger(__name__)

TICK_S = 0.1
COMMAND_TIMEOUT_S = 5.0
_ENGINES_STOP_S = 5.0

RecordEvent = Callable[[str, str, str, str], None]
"""Writes (kind, severity, target, message) to the journal."""


class ClusterManager:
    """Owns the scheduler, the sockets and the processes of one cluster, on the daemon's event loop.

    Invariant: `_ready` holds the EngineCoreReadyResponse of every instance that a table may name.
    """

    def __init__(
        self, config: Config, endpoints: Endpoints, model: str, cores_dir: Path, record: RecordEvent
    ) -> None:
        self.config = config
        self.scheduler = Scheduler(scheduler_settings(config))
        self._record = record
        self._socket = ControlSocket(endpoints)
        self.instances = InstancePool(config, endpoints, model, cores_dir, self.handle)
        self.api_servers = ApiServerPool(config, endpoints, model, record, self._socket.forget_api_server)
        self._engine_state = EngineState()
        self._ready: dict[int, bytes] = {}
        self._addresses: dict[int, PeerAddress] = {}
        self.migrations = MigrationLog()
        self._replayed: set[int] = set()
        self.rows: dict[int, tuple[RequestRow, ...]] = {}
        """By uid: the requests of each instance as it last told them."""
        self._table = Table(0, ())
        self._commands: dict[int, asyncio.Future[Done]] = {}
        self._command_ids = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self.on_change: Callable[[], None] = lambda: None
        """Called after anything an operator might look at has changed."""

    # ---- life -------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._socket.run(self._take), name="control-socket"),
            asyncio.create_task(self._ticks(), name="scheduler-ticks"),
        ]
        self.handle(AddInstances(self.config.instances.count))
        self.api_servers.start()

    async def drain_requests(self, drain_s: float) -> None:
        """Have the API servers take nothing new, finish or abort what runs, and end."""
        self.api_servers.expect_end()
        self._socket.tell_api_servers(StopServing(drain_s))
        await self.api_servers.stopped(drain_s + 5.0)

    async def stop_engines(self) -> None:
        """End all engine loops; what does not end in time is left to Ray's end."""
        for task in self._tasks[1:]:
            task.cancel()  # no more ticks: nothing is started again
        for uid in self.instances.uids():
            if uid in self._ready:
                self._socket.tell_instance(uid, StopEngine())
            else:
                self.instances.kill(uid)
        deadline = time.monotonic() + _ENGINES_STOP_S
        while self.instances.uids() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.api_servers.kill_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.instances.close()
        self._socket.close()

    def failed_task(self) -> BaseException | None:
        """What ended one of the manager's own tasks, if anything did."""
        return next(
            (t.exception() for t in self._tasks if t.done() and not t.cancelled() and t.exception()), None
        )

    # ---- events and actions -----------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """One event to the scheduler, its actions to the world; raises what the scheduler refuses."""
        actions = self.scheduler.handle(event, time.monotonic())
        if isinstance(event, InstanceDied):
            self._instance_died(event)
        for action in actions:
            self._enact(action)
        if actions:
            self.on_change()

    def _instance_died(self, event: InstanceDied) -> None:
        self._addresses.pop(event.uid, None)
        self.migrations.source_lost(event.uid, event.reason)
        for uid in self._addresses:
            self._socket.tell_instance(uid, PeerGone(event.uid, event.reason))

    def _enact(self, action: Action) -> None:
        if isinstance(action, StartInstance):
            self.instances.start(action.instance, action.uid)
        elif isinstance(action, StopInstance):
            self._socket.tell_instance(action.uid, StopEngine())
        elif isinstance(action, KillInstance):
            self.instances.kill(action.uid)
        elif isinstance(action, MoveRequests):
            self._move_requests(action)
        elif isinstance(action, PublishTable):
            self._publish(action)
        elif isinstance(action, Record):
            self._record(action.kind, action.severity, f"instance/{action.target}", action.message)
        else:
            assert_never(action)

    def _move_requests(self, action: MoveRequests) -> None:
        address = self._addresses[action.target]
        order = MoveAway(action.target, address, action.reason, action.for_s)
        self._socket.tell_instance(action.source, order)

    def _publish(self, action: PublishTable) -> None:
        entries = tuple(TableEntry(entry, self._ready[entry.uid]) for entry in action.entries)
        named = {entry.uid for entry in action.entries}
        for gone in self.rows.keys() - named:
            del self.rows[gone]
        for uid in named:
            self._engine_state.joined(uid, action.version)
        self._table = Table(action.version, entries)
        self._socket.tell_api_servers(self._table)

    async def _ticks(self) -> None:
        while True:
            self.handle(Tick())
            await asyncio.sleep(TICK_S)

    # ---- messages ---------------------------------------------------------------------------------------

    def _take(self, message: ToManager) -> None:
        if isinstance(message, Report):
            self.handle(Reported(message.report))
        elif isinstance(message, Heartbeat):
            self.handle(message.beat)
        elif isinstance(message, RequestTable):
            self.rows[message.uid] = message.rows
        elif isinstance(message, Done):
            self._answer(message)
        elif isinstance(message, StateOp):
            self._take_state_op(message)
        elif isinstance(message, MigrationNews):
            self._take_migration_news(message)
        elif isinstance(message, EngineUp | EngineServes):
            self._take_engine_news(message)
        else:
            self._take_api_server_news(message)

    def _take_engine_news(self, message: EngineUp | EngineServes) -> None:
        uid = message.uid
        if isinstance(message, EngineUp):
            self._ready[uid] = message.ready
            self._addresses[uid] = message.address
            self._replayed.add(uid)
            self._socket.tell_instance(uid, Replay(self._engine_state.calls(), then_serve=True))
        else:
            self.instances.stages.pop(uid, None)
            self.handle(InstanceReady(uid))

    def _take_api_server_news(self, message: ApiServerUp | ApiServerServes | LostContact) -> None:
        if isinstance(message, ApiServerUp):
            self.api_servers.up(message.index, message.pid)
            self._socket.tell_api_server(message.index, self._table)
        elif isinstance(message, ApiServerServes):
            self.api_servers.serves(message.index)
        else:
            logger.info("API server %d lost instance #%d: %s", message.index, message.uid, message.reason)
        self.on_change()

    def _take_migration_news(self, news: MigrationNews) -> None:
        self.migrations.take(news)
        if news.state == "committed":
            message = (
                f"moved in {news.downtime_ms or 0:.1f} ms of downtime, {news.num_bytes} bytes; {news.reason}"
            )
            self._record("migration.committed", "info", f"request/{news.request_id}", message)
        elif news.state == "aborted":
            self._record(
                "migration.aborted", "info", f"request/{news.request_id}", f"{news.why}; {news.reason}"
            )
        self.on_change()

    def _take_state_op(self, op: StateOp) -> None:
        self._engine_state.apply(op)
        if op.call is not None:
            for uid in self._engine_state.missed_by(op, self._replayed):
                self._socket.tell_instance(uid, Replay((op.call,), then_serve=False))

    # ---- commands with an answer ------------------------------------------------------------------------

    async def set_priority(self, uid: int, request_id: str, priority: int) -> None:
        """Raises RefusedError where the request is gone or the instance does not answer."""
        command_id = next(self._command_ids)
        await self._ask(
            command_id,
            lambda: self._socket.tell_instance(uid, SetPriority(command_id, request_id, priority)),
        )

    async def migrate(self, source: int, request_id: str, target: int, reason: str) -> str:
        """Begin to move a request; the migration's id. Raises RefusedError with the source's reason."""
        command_id = next(self._command_ids)
        address = self._addresses[target]
        return await self._ask(
            command_id,
            lambda: self._socket.tell_instance(source, Move(command_id, request_id, target, address, reason)),
        )

    async def abort_request(self, api_server: int, request_id: str, reason: str) -> None:
        """Raises RefusedError where the request is gone or the API server does not answer."""
        command_id = next(self._command_ids)
        await self._ask(
            command_id,
            lambda: self._socket.tell_api_server(api_server, AbortRequest(command_id, request_id, reason)),
        )

    async def _ask(self, command_id: int, send: Callable[[], None]) -> str:
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._commands[command_id] = future
        try:
            send()
            done = await asyncio.wait_for(future, COMMAND_TIMEOUT_S)
        except TimeoutError:
            raise RefusedError(
                f"no answer within {COMMAND_TIMEOUT_S:g} s; it may still take effect"
            ) from None
        finally:
            del self._commands[command_id]
        if done.error is not None:
            raise RefusedError(done.error)
        return done.result

    def _answer(self, done: Done) -> None:
        future = self._commands.get(done.command_id)
        if future is not None and not future.done():
            future.set_result(done)


def scheduler_settings(config: Config) -> SchedulerSettings:
    instances = config.instances
    return SchedulerSettings(
        headroom_tokens={c.engine_priority: c.headroom_tokens for c in config.priorities.values()},
        start_timeout_s=instances.start_timeout_s,
        restart_backoff_s=instances.restart_backoff_s,
        restart_limit=instances.restart_limit,
        heartbeat_timeout_s=instances.heartbeat_timeout_s,
        step_timeout_s=instances.step_timeout_s,
    )
