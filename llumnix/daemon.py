"""llumnixd: puts the parts of a cluster together, runs them, and takes them apart again."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

from llumnix.admin.journal import Journal
from llumnix.admin.server import AdminServer
from llumnix.admin.tokens import load_tokens
from llumnix.bookkeeping import Bookkeeper
from llumnix.cluster import ledger as ledgers
from llumnix.cluster import local_node, ray_driver
from llumnix.cluster.actors import end_actors, named_actors
from llumnix.cluster.control import LiveControl
from llumnix.cluster.lock import ClusterLock
from llumnix.cluster.manager import ClusterManager
from llumnix.cluster.nodes import NodeList
from llumnix.cluster.ray_node import RayNode
from llumnix.cluster.takeover import take_over
from llumnix.config import (
    Config,
    check_files,
    check_model,
    check_node_ip,
    check_port,
    check_ports,
    hold_port,
    load_config,
    reloaded,
)
from llumnix.engine.memory import check_memory
from llumnix.errors import ConfigError, StartupError
from llumnix.log import get_logger, log_to
from llumnix.progress import Progress
from llumnix.systemd import notify, notify_reloading, watchdog_interval_s

logger = get_logger(__name__)

RAY_GRACE_S = 3.0
_CONFIG_ERROR = "ConfigError: "


def run(path: Path, config: Config) -> int:
    """Run the cluster of the file at `path` until a signal ends it; returns the exit code.

    What a former llumnixd left running is taken over. Raises LlumnixError if the cluster cannot start.
    """
    state_dir = config.cluster.state_dir
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ClusterLock(state_dir):
        log_to_file(config, "llumnixd.log")
        check_files(config)
        check_model(config)
        if local_node.living(state_dir) is None:
            check_ports(config)
        else:  # the others may be in use by what is taken over
            check_node_ip(config)
            check_port("admin", config.admin.host, config.admin.port)
        return asyncio.run(_Daemon(path, config).run())


def log_dir(config: Config) -> Path:
    """Where the processes of this machine write their logs."""
    return config.cluster.state_dir / "logs"


def log_to_file(config: Config, name: str) -> None:
    """Log to a rotated file of the state directory."""
    log_to(
        log_dir(config) / name,
        config.logging.level,
        max_bytes=config.logging.max_bytes,
        backups=config.logging.backups,
        terminal=False,
    )


class _Daemon:
    """One run of llumnixd on one event loop.

    It ends what it runs when it ends, but for a Ray node that a `llumnixd --head` keeps (`_leave`): what runs
    there goes on and is taken over by the next llumnixd, unless the cluster never came up.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self._config = config
        self._state_dir = config.cluster.state_dir
        self._kept = local_node.is_kept(self._state_dir)
        self._leave = self._kept
        self._started = time.monotonic()
        self._first_signal = asyncio.Event()
        self._second_signal = asyncio.Event()
        self._reload_asked = asyncio.Event()

    async def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_asked.set)
        progress = Progress()
        async with AsyncExitStack() as stack:
            stack.callback(progress.close)
            watchdog = asyncio.create_task(_feed_watchdog())
            stack.callback(watchdog.cancel)
            manager, control = await self._start(stack, progress)
            code = await self._serve(manager, control, progress)
            control.stopping = True
            notify("STOPPING=1")
            if self._leave:
                progress.say("stopping: API servers and instances go on, as llumnixd --head keeps them")
            else:
                progress.say("stopping: no new requests, waiting for running ones (again: stop at once)")
                await self._stop(manager)
        progress.say("stopped")
        return code

    # ---- starting ---------------------------------------------------------------------------------------

    async def _start(self, stack: AsyncExitStack, progress: Progress) -> tuple[ClusterManager, LiveControl]:
        config = self._config
        journal = Journal(self._state_dir / "journal.db")
        stack.callback(journal.close)
        self._books = books = Bookkeeper(journal, self._state_dir, progress.fault)
        record = books.record
        tokens = load_tokens(self._state_dir, config.admin.tokens)
        books.note("daemon.started", f"llumnixd starts cluster {config.cluster.name}")
        stack.callback(books.note, "daemon.stopped", "llumnixd has stopped")
        progress.say(f"starting Ray and {config.instances.count} instances of {config.served_name}")
        model = asyncio.create_task(asyncio.to_thread(_resolve_model, config))
        node = await asyncio.to_thread(local_node.obtain, config, record, kept=self._kept)
        stack.push_async_callback(self._stop_node, node)
        self._node = node
        ray_driver.connect(node, config.ray_namespace)
        stack.callback(ray_driver.disconnect)
        stack.push_async_callback(self._end_actors)
        ledger = await take_over(config, node, record)
        if not ledger.api_servers:
            check_port("http", config.http.host, config.http.port)
        if (holder := hold_port(config.http.host, config.http.port)) is not None:
            stack.callback(holder.close)
        if not ledger.instances:  # what a former run held is free by now
            check_memory(config)
        manager = ClusterManager(
            config, ledger, await model, node.temp_dir / "cores", record, books.write_down
        )
        stack.push_async_callback(self._close, manager)
        nodes = NodeList(manager.node_is_gone)
        control = LiveControl(manager, nodes, _url(config), books.faults)
        refresh = asyncio.create_task(nodes.keep_fresh())
        stack.callback(refresh.cancel)
        admin = AdminServer(control, journal, tokens, log_dir(config), config.admin.host, config.admin.port)
        await admin.start()
        stack.push_async_callback(admin.stop)
        manager.start()
        return manager, control

    # ---- serving ----------------------------------------------------------------------------------------

    async def _serve(self, manager: ClusterManager, control: LiveControl, progress: Progress) -> int:
        """Until the first signal. Raises StartupError or ConfigError if the cluster cannot come up."""
        announced = told = False
        while not self._first_signal.is_set():
            progress.show(control.instances(), starting=not announced)
            self._raise_if_broken(manager)
            if not announced:
                self._raise_if_hopeless(manager, control)
                announced = control.ready()[0]
                if announced:
                    progress.ready(self._config, _url(self._config), time.monotonic() - self._started)
            if not told and control.cluster().state in ("serving", "degraded"):
                told = True
                notify("READY=1", f"STATUS=serving at {_url(self._config)}")
            if self._reload_asked.is_set():
                self._reload_asked.clear()
                self._reload(manager)
            await self._pause(0.1 if not announced else 0.5)
        return 0

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._first_signal.wait(), seconds)
        except TimeoutError:
            return

    def _raise_if_broken(self, manager: ClusterManager) -> None:
        failed = manager.failed_task()
        if failed is not None:
            raise StartupError(f"llumnixd failed: {failed!r}") from failed
        if not self._node.lives():
            raise StartupError("The Ray node on this machine ended.")

    def _raise_if_hopeless(self, manager: ClusterManager, control: LiveControl) -> None:
        try:
            _raise_if_hopeless(manager, control)
        except (ConfigError, StartupError):
            self._leave = False
            raise

    def _reload(self, manager: ClusterManager) -> None:
        """Read the file again (SIGHUP): take on what can change while the cluster runs, name the rest."""
        notify_reloading()
        try:
            self._config, taken, others = reloaded(self._config, load_config(self._path))
        except ConfigError as error:
            self._books.note("config.refused", str(error), severity="error")
            logger.error("not reloaded: %s", error)
        else:
            logging.getLogger("llumnix").setLevel(self._config.logging.level.upper())
            manager.reconfigure(self._config)
            message = f"took on {', '.join(taken) or 'nothing new'}"
            if others:
                message += f"; needs a restart: {', '.join(others)}"
            self._books.note("config.reloaded", message, severity="warning" if others else "info")
            logger.info("reloaded: %s", message)
        notify("READY=1")

    # ---- stopping ---------------------------------------------------------------------------------------

    async def _stop(self, manager: ClusterManager) -> None:
        """In good order; the second signal skips what is left of it."""
        orderly = asyncio.create_task(self._stop_in_order(manager))
        hurried = asyncio.create_task(self._second_signal.wait())
        await asyncio.wait({orderly, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not orderly.done():
            logger.warning("second signal: stopping at once")
            orderly.cancel()
            await asyncio.gather(orderly, return_exceptions=True)
        else:
            orderly.result()

    async def _stop_in_order(self, manager: ClusterManager) -> None:
        await manager.drain_requests(self._config.http.drain_timeout_s)
        await manager.stop_engines()

    async def _close(self, manager: ClusterManager) -> None:
        await manager.close(leave=self._leave)

    async def _end_actors(self) -> None:
        if self._kept and not self._leave:
            await end_actors(named_actors())
            ledgers.forget(self._state_dir)

    async def _stop_node(self, node: RayNode) -> None:
        if not self._kept:
            grace_s = 0.0 if self._second_signal.is_set() else RAY_GRACE_S
            await asyncio.to_thread(local_node.stop, self._config, node, grace_s)

    def _on_signal(self) -> None:
        if self._first_signal.is_set():
            self._second_signal.set()
        self._first_signal.set()


async def _feed_watchdog() -> None:
    """Tell systemd that the event loop turns."""
    interval_s = watchdog_interval_s()
    while interval_s is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)


def _resolve_model(config: Config) -> str:
    """What vLLM is given as the model; a built-in one is built where it is not cached."""
    from llumnix.engine.model_path import resolve_model

    return resolve_model(config)


def _url(config: Config) -> str:
    scheme = "https" if config.http.tls_cert else "http"
    host = f"[{config.http.host}]" if ":" in config.http.host else config.http.host
    return f"{scheme}://{host}:{config.http.port}"


def _raise_if_hopeless(manager: ClusterManager, control: LiveControl) -> None:
    """End a start that cannot succeed: a setting that vLLM refuses, or what was given up."""
    reasons = [server.reason for server in manager.api_servers.states]
    instances = control.instances()
    reasons += [instance.reason for instance in instances]
    for reason in reasons:
        if _CONFIG_ERROR in reason:
            # Of what is to follow (a restart) nothing will.
            raise ConfigError(reason.split(_CONFIG_ERROR, 1)[1].rsplit("; restarts in ", 1)[0])
    for server in manager.api_servers.states:
        if server.failures > manager.config.instances.restart_limit:
            raise StartupError(f"API server {server.index} could not be started: {server.reason}")
    if instances and all(instance.state == "failed" for instance in instances):
        raise StartupError(f"no instance could be started: {instances[0].reason}")
