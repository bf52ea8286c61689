"""llumnixd as the keeper of one machine's Ray node and of all that runs there: --head and --join."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from llumnix.admin.tokens import read_token
from llumnix.cluster import ledger as ledgers
from llumnix.cluster import leftovers, local_node, ray_driver, ray_node, takeover
from llumnix.cluster.lock import ClusterLock
from llumnix.config import Config, check_node_ip
from llumnix.daemon import RAY_GRACE_S, log_dir, log_to_file
from llumnix.errors import ConfigError, LlumnixError, StartupError
from llumnix.log import LOG_DIR_VARIABLE, get_logger
from llumnix.progress import Progress
from llumnix.systemd import notify

logger = get_logger(__name__)

_POLL_S = 1.0
_ENDING = {signal.SIGINT, signal.SIGTERM}


def head(config: Config) -> int:
    """Keep the Ray node of a cluster and what llumnixd starts there, until a signal: then drain and end it.

    llumnixd itself may come and go meanwhile.
    """
    check_node_ip(config)
    state_dir = config.cluster.state_dir
    with local_node.keeper_lock(state_dir):
        log_to_file(config, "llumnixd-head.log")
        with ClusterLock(state_dir):  # no llumnixd may be using what is ended here
            node = local_node.obtain(config, _log_record, kept=False)
        try:
            _announce(
                f"Ray node at {node.address} is up; llumnixd can start. Ctrl-C ends all that runs there"
            )
            _wait_for_signal(node)
            notify("STOPPING=1", "STATUS=draining")
            _drain(config, node)
            return 0
        finally:
            local_node.stop(config, node, RAY_GRACE_S)


def check_joining(config: Config) -> str:
    """The cluster's Ray token; raises ConfigError where anything that joining uses is wrong."""
    if config.ray.address in ("local", "auto"):
        raise ConfigError(
            f'ray.address = "{config.ray.address}" in the file of a joining machine, expected '
            '"HOST:PORT" of the head.'
        )
    check_node_ip(config)
    name = local_node.RAY_TOKEN_FILE
    return read_token(config.cluster.state_dir / name, f"copy {name} from the head's cluster.state_dir here")


def join(config: Config) -> int:
    """Add this machine to the cluster whose head ray.address names, until a signal ends it."""
    token = check_joining(config)
    state_dir = config.cluster.state_dir
    run_record = leftovers.new_run(config.ray.temp_dir or Path("/tmp"))
    with ClusterLock(state_dir / "node"):
        log_to_file(config, "llumnixd-node.log")
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
            env={LOG_DIR_VARIABLE: str(log_dir(config))},
        )
        try:
            _announce(f"joined {config.ray.address} as node {node.node_id}; Ctrl-C leaves")
            _wait_for_signal(node)
            notify("STOPPING=1")
            return 0
        finally:
            ray_node.stop(node, RAY_GRACE_S)
            leftovers.forget_run(state_dir / "node")


def _announce(text: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there is nothing to reload, and much to lose
    Progress().say(text)
    notify("READY=1", f"STATUS={text}")


def _wait_for_signal(node: ray_node.RayNode) -> None:
    while signal.sigtimedwait(_ENDING, _POLL_S) is None:
        notify("WATCHDOG=1")
        if not node.lives():
            raise StartupError(f"the Ray node on this machine ended (its head at {node.address} may be gone)")


def _drain(config: Config, node: ray_node.RayNode) -> None:
    """Let the API servers finish what runs; whatever fails here must not keep the node from ending.

    A second signal ends it.
    """
    ledger = ledgers.read(config.cluster.state_dir)
    if ledger is None or ledger.run_id != node.run_id:
        return
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        with ClusterLock(config.cluster.state_dir):
            ray_driver.connect(node, config.ray_namespace)
            try:
                asyncio.run(takeover.drain(ledger, config.http.drain_timeout_s))
            finally:
                ray_driver.disconnect()
    except LlumnixError as error:
        logger.warning("requests were not drained: %s", error)
    except KeyboardInterrupt:
        logger.warning("second signal: stopping at once")


def _log_record(kind: str, severity: str, target: str, message: str) -> None:
    level = {"info": logger.info, "warning": logger.warning, "error": logger.error}[severity]
    level("%s %s: %s", target, kind, message)
