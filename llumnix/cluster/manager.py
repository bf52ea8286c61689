"""The cluster manager: brings events to core.Scheduler and carries out its actions. It decides nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from llumnix.cluster.api_server_pool import ApiServerPool
from llumnix.cluster.commands import Commands
from llumnix.cluster.control_socket import ControlSocket
from llumnix.cluster.engine_state import EngineState
from llumnix.cluster.instance_pool import InstancePool
from llumnix.cluster.latency import LatencyWindow
from llumnix.cluster.ledger import KnownEngine, Ledger
from llumnix.cluster.migration_log import MigrationLog
from llumnix.cluster.node_logs import NodeLogs
from llumnix.cluster.recorder import Recorder
from llumnix.cluster.request_ids import internal_id
from llumnix.cluster.tasks import failure_of
from llumnix.config import Config
from llumnix.core.events import (
    AbortRequests,
    Action,
    AddInstances,
    AdoptInstances,
    Event,
    HeldRequests,
    InstanceDied,
    InstanceReady,
    KillInstance,
    MoveRequests,
    NodeGone,
    PublishTable,
    Record,
    Reported,
    ScaleTo,
    StartInstance,
    StopInstance,
    Tick,
)
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import SchedulerSettings
from llumnix.log import get_logger
from llumnix.wire import (
    ApiServerServes,
    ApiServerUp,
    Done,
    EngineServes,
    EngineUp,
    Heartbeat,
    Held,
    LatencySamples,
    LostContact,
    MigrationNews,
    MoveAway,
    PeerGone,
    Replay,
    Report,
    RequestRow,
    RequestTable,
    StateOp,
    StopEngine,
    StopServing,
    Table,
    TableEntry,
    ToManager,
)

logger = get_logger(__name__)

TICK_S = 0.1
_ENGINES_STOP_S = 5.0

RecordEvent = Callable[[str, str, str, str], None]
"""Writes (kind, severity, target, message) to the journal."""


class ClusterManager:
    """Owns the scheduler, the sockets and the processes of one cluster, on the daemon's event loop.

    Invariants: `_engines` holds what every instance that a table may name said when it came up; what the
    scheduler decides stands in the ledger before it is done, unless the disk refuses it: then once it can.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        model: str,
        cores_dir: Path,
        record: RecordEvent,
        write_down: Callable[[Ledger], bool],
    ) -> None:
        """`ledger`: of a new cluster, or of one to take over; `write_down` keeps its later states, if it can.

        Neither `record` nor `write_down` raises because of a disk: the cluster serves without them.
        """
        endpoints = ledger.endpoints
        self.config = config
        self.scheduler = Scheduler(scheduler_settings(config, ledger))
        record_to = config.scheduler.record
        self._is_ending = False
        self._serve_until: float | None = None
        """Set once the API servers are to end: those that come up later are told so too."""
        self._recorder = Recorder(record_to, self.scheduler) if record_to is not None else None
        self._ledger = ledger
        self._write_down = write_down
        self._is_written_down = True
        self._record = record
        self._socket = ControlSocket(endpoints)
        self.commands = Commands(self._socket)
        self.instances = InstancePool(config, endpoints, model, cores_dir, self.handle)
        self.api_servers = ApiServerPool(config, endpoints, model, record, self._socket.forget_api_server)
        self._engine_state = EngineState(ledger.engine_state)
        self._engines: dict[int, KnownEngine] = {}
        self.migrations = MigrationLog()
        self.latency = LatencyWindow()
        self.node_logs = NodeLogs(config.cluster.state_dir / "logs")
        self._replayed: set[int] = set()
        self.names: dict[int, str] = {}
        """By uid: the instance, of all incarnations that there have been."""
        self.rows: dict[int, tuple[RequestRow, ...]] = {}
        """By uid: the requests of each instance as it last told them."""
        self.held: dict[int, tuple[RequestRow, ...]] = {}
        """By API server: the requests that it holds until an instance has room."""
        self._table = Table(0, ())
        self._tasks: list[asyncio.Task[None]] = []
        self.on_change: Callable[[], None] = lambda: None
        """Called after anything an operator might look at has changed."""

    # ---- life -------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._socket.run(self._take), name="control-socket"),
            asyncio.create_task(self._ticks(), name="scheduler-ticks"),
        ]
        self.api_servers.start(self._ledger.api_servers)
        if self._ledger.instances:
            self._take_over()
        else:
            self.handle(AddInstances(self.config.instances.count))

    def _take_over(self) -> None:
        """Go on with what a former llumnixd left; what of it did not serve is started again."""
        left = self._ledger
        self._ledger = left.under(self.config)
        for known in left.instances:
            self.names[known.uid] = known.instance
            if known.engine is not None:
                self._engines[known.uid] = known.engine
                self._engine_state.joined(known.uid, left.table_version)
                self._replayed.add(known.uid)
        adopted = tuple(known.adopted() for known in left.instances)
        self.handle(AdoptInstances(adopted, left.table_version, left.cordoned_nodes))
        for known in left.instances:
            if known.engine is not None:
                self.instances.adopt(known.uid)
        if left.differs_in("instances.count", self.config):
            self.handle(ScaleTo(self.config.instances.count))

    def reconfigure(self, config: Config) -> None:
        """Go on with a configuration that differs in what can change at run time."""
        self.config = config
        self.scheduler.reconfigure(config.scheduling)

    async def drain_requests(self, drain_s: float) -> None:
        """Have the API servers take nothing new, finish or abort what runs, and end."""
        self._serve_until = time.monotonic() + drain_s
        self._socket.tell_api_servers(StopServing(drain_s))
        self.api_servers.expect_end()
        await self.api_servers.stopped(drain_s + 5.0)

    async def stop_engines(self) -> None:
        """End all engine loops; what does not end in time is left to Ray's end."""
        self._is_ending = True
        for task in self._tasks[1:]:
            task.cancel()  # no more ticks: nothing is started again
        for uid in self.instances.uids():
            if uid in self._engines:
                self._socket.tell_instance(uid, StopEngine())
            else:
                self.instances.kill(uid)
        deadline = time.monotonic() + _ENGINES_STOP_S
        while self.instances.uids() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def close(self, *, leave: bool = False) -> None:
        """End what runs in this process; with `leave` the API servers go on serving."""
        for task in self._tasks:
            task.cancel()
        if leave:
            self.api_servers.leave()
        else:
            self.api_servers.kill_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.instances.close()
        self._socket.close()
        if self._recorder is not None:
            self._recorder.close()

    def node_is_gone(self, node: str) -> None:
        """Ray calls it dead; it may be told again and again."""
        if node in self.scheduler.cordoned_nodes():
            self.handle(NodeGone(node))

    def failed_task(self) -> BaseException | None:
        """What ended a task of the manager or of its pools, if anything did."""
        return failure_of(self._tasks) or self.instances.failed_task() or self.api_servers.failed_task()

    # ---- events and actions -----------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """One event to the scheduler, its actions to the world; raises what the scheduler refuses."""
        if self._is_ending and isinstance(event, InstanceDied):
            return  # as it was told to: nothing to put right, nothing to tell
        now = time.monotonic()
        if self._recorder is not None:
            self._recorder.record(event, now)
        actions = self.scheduler.handle(event, now)
        if isinstance(event, InstanceDied):
            self._instance_died(event)
        if any(isinstance(action, StartInstance | PublishTable | Record) for action in actions):
            self._write_ledger()
            self._note_drains()
        for action in actions:
            self._enact(action)
        if actions:
            self.on_change()

    def _write_ledger(self) -> None:
        ledger = self._ledger.now(
            self.scheduler.instances(),
            self.scheduler.table().version,
            self._engines,
            self.api_servers.known(),
            self._engine_state.by_key(),
            self.scheduler.cordoned_nodes(),
        )
        if ledger != self._ledger or not self._is_written_down:
            self._ledger = ledger
            self._is_written_down = self._write_down(ledger)

    def _note_drains(self) -> None:
        for view in self.scheduler.instances():
            if view.drain is not None:
                self.migrations.drain_began(view.uid, view.drain.started_at)

    def _instance_died(self, event: InstanceDied) -> None:
        self._engines.pop(event.uid, None)
        self.migrations.source_lost(event.uid, event.reason)
        for uid in self._engines:
            self._socket.tell_instance(uid, PeerGone(event.uid, event.reason))

    def _enact(self, action: Action) -> None:
        if isinstance(action, StartInstance):
            self.names[action.uid] = action.instance
            self.instances.start(action.instance, action.uid, action.not_on)
        elif isinstance(action, StopInstance):
            self._socket.tell_instance(action.uid, StopEngine())
        elif isinstance(action, KillInstance):
            self.instances.kill(action.uid)
        elif isinstance(action, AbortRequests):
            self._abort_requests(action)
        elif isinstance(action, MoveRequests):
            self._move_requests(action)
        elif isinstance(action, PublishTable):
            self._publish(action)
        elif isinstance(action, Record):
            target = action.target if "/" in action.target else f"instance/{action.target}"
            self._record(action.kind, action.severity, target, action.message)
        else:
            assert_never(action)

    def _abort_requests(self, action: AbortRequests) -> None:
        for row in self.rows.get(action.uid, ()):
            self.commands.abort_unasked(row.api_server, internal_id(row.request_id), action.reason)

    def _move_requests(self, action: MoveRequests) -> None:
        address = self._engines[action.target].address
        order = MoveAway(action.target, address, action.reason, action.for_s, action.goal)
        self._socket.tell_instance(action.source, order)

    def _publish(self, action: PublishTable) -> None:
        entries = tuple(TableEntry(entry, self._engines[entry.uid].ready) for entry in action.entries)
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
            if not self._is_written_down:
                self._write_ledger()
            await asyncio.sleep(min(TICK_S, self.config.scheduler.interval_s))

    # ---- messages ---------------------------------------------------------------------------------------

    def _take(self, message: ToManager) -> None:
        if isinstance(message, Report):
            self.handle(Reported(message.report))
        elif isinstance(message, Heartbeat):
            self.handle(message.beat)
        elif isinstance(message, RequestTable):
            self.rows[message.uid] = message.rows
        elif isinstance(message, Held):
            self._take_held(message)
        elif isinstance(message, Done):
            self.commands.answer(message)
        elif isinstance(message, StateOp):
            self._take_state_op(message)
        elif isinstance(message, MigrationNews):
            self._take_migration_news(message)
        elif isinstance(message, LatencySamples):
            self.latency.take(message, time.monotonic())
        elif isinstance(message, EngineUp | EngineServes):
            self._take_engine_news(message)
        else:
            self._take_api_server_news(message)

    def _take_engine_news(self, message: EngineUp | EngineServes) -> None:
        uid = message.uid
        if isinstance(message, EngineUp):
            self._engines[uid] = KnownEngine(message.ready, message.address)
            self._replayed.add(uid)
            self._socket.tell_instance(uid, Replay(self._engine_state.calls(), then_serve=True))
        else:
            self.instances.stages.pop(uid, None)
            self.handle(InstanceReady(uid))

    def _take_api_server_news(self, message: ApiServerUp | ApiServerServes | LostContact) -> None:
        if isinstance(message, ApiServerUp):
            self._take_held(Held(HeldRequests(message.index, 0, 0, 0, 0), ()))
            self.api_servers.up(message.index, message.pid)
            if self._serve_until is not None:
                rest_s = max(0.0, self._serve_until - time.monotonic())
                self._socket.tell_api_server(message.index, StopServing(rest_s))
            self._socket.tell_api_server(message.index, self._table)
        elif isinstance(message, ApiServerServes):
            self.api_servers.serves(message.index)
            self._write_ledger()
        else:
            logger.info("API server %d lost instance #%d: %s", message.index, message.uid, message.reason)
        self.on_change()

    def _take_held(self, message: Held) -> None:
        self.handle(message.queue)
        if message.rows is not None:
            self.held[message.queue.api_server] = message.rows

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
        self._write_ledger()
        if op.call is not None:
            for uid in self._engine_state.missed_by(op, self._replayed):
                self._socket.tell_instance(uid, Replay((op.call,), then_serve=False))

    # ---- questions --------------------------------------------------------------------------------------

    async def migrate(
        self, source: int, request_id: str, target: int, reason: str, then: Sequence[str] = ()
    ) -> str:
        """Begin to move a request, `then` others of that instance one by one; the migration's id.

        Raises RefusedError with the source's reason.
        """
        address = self._engines[target].address
        return await self.commands.migrate(source, request_id, target, address, reason, then)

    async def ask_for_rows(self) -> None:
        """Have `rows` and `held` as of now; who does not answer soon keeps its last ones."""
        uids = [entry.entry.uid for entry in self._table.entries]
        await self.commands.have_rows_told(uids=uids, api_servers=self._serving_api_servers())

    async def heard_by_api_servers(self) -> None:
        """Wait until they go by the latest table, taking messages in order; not long for a stuck one."""
        await self.commands.have_rows_told(api_servers=self._serving_api_servers())

    def _serving_api_servers(self) -> list[int]:
        return [server.index for server in self.api_servers.states if server.serving]


def scheduler_settings(config: Config, ledger: Ledger) -> SchedulerSettings:
    """Those of the file, with numbers that go on where the ledger's end."""
    return replace(config.scheduling, first_uid=ledger.next_uid, first_instance=ledger.next_instance)
