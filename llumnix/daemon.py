"""llumnixd: puts the parts of a cluster together, runs them, and takes them apart again."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

from llumnix.admin.journal import Journal
from llumnix.admin.server import AdminServer
from llumnix.admin.tokens import load_tokens, read_token
from llumnix.cluster import leftovers, ray_driver, ray_node
from llumnix.cluster.control import LiveControl
from llumnix.cluster.lock import ClusterLock
from llumnix.cluster.manager import ClusterManager
from llumnix.cluster.nodes import NodeList
from llumnix.config import Config, check_files, check_model, check_ports
from llumnix.endpoints import make_endpoints
from llumnix.errors import ConfigError, StartupError
from llumnix.log import get_logger, log_to
from llumnix.progress import Progress

logger = get_logger(__name__)

RAY_TOKEN_FILE = "ray.token"
_RAY_GRACE_S = 3.0
_CONFIG_ERROR = "ConfigError: "


def run(config: Config) -> int:
    """Run a cluster until a signal ends it; returns the exit code. Raises LlumnixError if it cannot start."""
    state_dir = config.cluster.state_dir
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ClusterLock(state_dir):
        _log(config, "llumnixd.log")
        for ended in leftovers.clean_previous_run(state_dir):
            logger.warning("ended %s (pid %d), left behind by a run that was killed", ended.name, ended.pid)
        check_files(config)
        check_model(config)
        check_ports(config)
        return asyncio.run(_Daemon(config).run())


def join(config: Config) -> int:
    """Add this machine to the cluster whose head ray.address names, until a signal ends it."""
    if config.ray.address in ("local", "auto"):
        raise ConfigError(
            f'ray.address = "{config.ray.address}" in the file of a joining machine, expected '
            '"HOST:PORT" of the head.'
        )
    state_dir = config.cluster.state_dir
    token = read_token(
        state_dir / RAY_TOKEN_FILE, f"copy {RAY_TOKEN_FILE} from the head's cluster.state_dir here"
    )
    run_record = leftovers.new_run(config.ray.temp_dir or Path("/tmp"))
    with ClusterLock(state_dir / "node"):
        _log(config, "llumnixd-node.log")
        leftovers.clean_previous_run(state_dir / "node")
        leftovers.record_run(state_dir / "node", run_record)
        node = ray_node.join(
            address=config.ray.address,
            temp_dir=Path(run_record.temp_dir),
            node_ip=config.ray.node_ip,
            num_cpus=config.ray.num_cpus,
            num_gpus=config.ray.num_gpus,
            token=token,
            run_id=run_record.run_id,
            env={},
        )
        Progress().say(f"joined {config.ray.address} as node {node.node_id}; Ctrl-C leaves")
        try:
            return _wait_for_signal(node)
        finally:
            ray_node.stop(node, _RAY_GRACE_S)
            leftovers.forget_run(state_dir / "node")


def _wait_for_signal(node: ray_node.RayNode) -> int:
    import psutil

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    while signal.sigtimedwait({signal.SIGINT, signal.SIGTERM}, 1.0) is None:
        if not psutil.pid_exists(node.raylet_pid):
            raise StartupError(f"the Ray node on this machine ended (its head at {node.address} may be gone)")
    return 0


def _log(config: Config, name: str) -> None:
    log_to(
        config.cluster.state_dir / "logs" / name,
        config.logging.level,
        max_bytes=config.logging.max_bytes,
        backups=config.logging.backups,
        terminal=False,
    )


class _Daemon:
    """One run of llumnixd on one event loop."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._state_dir = config.cluster.state_dir
        self._started = time.monotonic()
        self._first_signal = asyncio.Event()
        self._second_signal = asyncio.Event()

    async def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        progress = Progress()
        async with AsyncExitStack() as stack:
            stack.callback(progress.close)
            manager, control = await self._start(stack, progress)
            code = await self._serve(manager, control, progress)
            control.stopping = True
            progress.say("stopping: no new requests, waiting for running ones (again: stop at once)")
            await self._stop(manager)
        progress.say("stopped")
        return code

    # ---- starting ---------------------------------------------------------------------------------------

    async def _start(self, stack: AsyncExitStack, progress: Progress) -> tuple[ClusterManager, LiveControl]:
        config = self._config
        journal = Journal(self._state_dir / "journal.db")
        stack.callback(journal.close)
        tokens = load_tokens(self._state_dir, config.admin.tokens)
        journal.append("daemon.started", f"llumnixd starts cluster {config.cluster.name}")
        stack.callback(journal.append, "daemon.stopped", "llumnixd has stopped")
        progress.say(f"starting Ray and {config.instances.count} instances of {config.served_name}")
        model = asyncio.create_task(asyncio.to_thread(_resolve_model, config))
        run_record = leftovers.new_run(config.ray.temp_dir or Path("/tmp"))
        leftovers.record_run(self._state_dir, run_record)
        node = await asyncio.to_thread(self._start_ray, run_record)
        stack.push_async_callback(self._stop_ray, node)
        ray_driver.connect(node, config.ray_namespace)
        stack.callback(ray_driver.disconnect)
        endpoints = make_endpoints(config, node.temp_dir)
        manager = ClusterManager(config, endpoints, await model, node.temp_dir / "cores", _recorder(journal))
        stack.push_async_callback(manager.close)
        nodes = NodeList()
        control = LiveControl(manager, nodes, _url(config))
        refresh = asyncio.create_task(nodes.keep_fresh())
        stack.callback(refresh.cancel)
        admin = AdminServer(control, journal, tokens, config.admin.host, config.admin.port)
        await admin.start()
        stack.push_async_callback(admin.stop)
        manager.start()
        return manager, control

    def _start_ray(self, run_record: leftovers.RunRecord) -> ray_node.RayNode:
        ray = self._config.ray
        if ray.address == "local":
            return ray_node.start_head(
                temp_dir=Path(run_record.temp_dir),
                node_ip=ray.node_ip,
                port=ray.port,
                num_cpus=ray.num_cpus,
                num_gpus=ray.num_gpus,
                dashboard=ray.dashboard,
                token=_ray_token(self._state_dir),
                run_id=run_record.run_id,
                env={},
            )
        return ray_node.join(
            address=ray_driver.find_local_head() if ray.address == "auto" else ray.address,
            temp_dir=Path(run_record.temp_dir),
            node_ip=ray.node_ip,
            num_cpus=ray.num_cpus,
            num_gpus=ray.num_gpus,
            token=_ray_token(self._state_dir),
            run_id=run_record.run_id,
            env={},
        )

    # ---- serving ----------------------------------------------------------------------------------------

    async def _serve(self, manager: ClusterManager, control: LiveControl, progress: Progress) -> int:
        """Until the first signal. Raises StartupError or ConfigError if the cluster cannot come up."""
        announced = False
        while not self._first_signal.is_set():
            progress.show(control.instances(), starting=not announced)
            failed = manager.failed_task()
            if failed is not None:
                raise StartupError(f"llumnixd failed: {failed!r}") from failed
            if not announced:
                _raise_if_hopeless(manager, control)
                announced = control.ready()[0]
                if announced:
                    progress.ready(self._config, _url(self._config), time.monotonic() - self._started)
            await self._pause(0.1 if not announced else 0.5)
        return 0

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._first_signal.wait(), seconds)
        except TimeoutError:
            return

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

    async def _stop_ray(self, node: ray_node.RayNode) -> None:
        grace_s = 0.0 if self._second_signal.is_set() else _RAY_GRACE_S
        await asyncio.to_thread(ray_node.stop, node, grace_s)
        leftovers.forget_run(self._state_dir)

    def _on_signal(self) -> None:
        if self._first_signal.is_set():
            self._second_signal.set()
        self._first_signal.set()


def _resolve_model(config: Config) -> str:
    """What vLLM is given as the model; a built-in one is built where it is not cached."""
    from llumnix.engine.model_path import resolve_model

    return resolve_model(config)


def _ray_token(state_dir: Path) -> str:
    """The cluster's Ray token, made at the first start; joining machines get a copy of its file."""
    path = state_dir / RAY_TOKEN_FILE
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
    return read_token(path, "ray token")


def _recorder(journal: Journal):  # type: ignore[no-untyped-def]
    def record(kind: str, severity: str, target: str, message: str) -> None:
        level = {"info": logger.info, "warning": logger.warning, "error": logger.error}[severity]
        level("%s %s: %s", target, kind, message)
        journal.append(kind, message, severity=severity, target=target)  # type: ignore[arg-type]

    return record


def _url(config: Config) -> str:
    scheme = "https" if config.http.tls_cert else "http"
    host = f"[{config.http.host}]" if ":" in config.http.host else config.http.host
    return f"{scheme}://{host}:{config.http.port}"


def _raise_if_hopeless(manager: ClusterManager, control: LiveControl) -> None:
    """End a start that cannot succeed: a setting that vLLM refuses, or all instances given up."""
    reasons = [server.reason for server in manager.api_servers.states]
    instances = control.instances()
    reasons += [instance.reason for instance in instances]
    for reason in reasons:
        if _CONFIG_ERROR in reason:
            # Of what is to follow (a restart) nothing will.
            raise ConfigError(reason.split(_CONFIG_ERROR, 1)[1].rsplit("; restarts in ", 1)[0])
    if instances and all(instance.state == "failed" for instance in instances):
        raise StartupError(f"no instance could be started: {instances[0].reason}")
