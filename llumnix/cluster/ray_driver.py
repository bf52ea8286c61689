"""Make this process a driver of one of our Ray clusters, and end that."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

from llumnix.cluster.ray_node import LOOPBACK_IP, PROBE_TIMEOUT_S, RayNode, require_answer
from llumnix.errors import LlumnixError, StartupError


def find_local_head() -> str:
    """HOST:PORT of the one Ray head that runs on this machine; StartupError if there is none or several."""
    from ray._private.services import find_gcs_addresses

    addresses = sorted(find_gcs_addresses())
    if len(addresses) != 1:
        found = f"several run: {', '.join(addresses)}" if addresses else "none runs"
        raise StartupError(f'ray.address = "auto" expects one Ray head on this machine, but {found}.')
    return str(addresses[0])


def connect(node: RayNode, namespace: str) -> None:
    """Make this process a driver of the node's cluster; also if ray was imported before."""
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(node.token_path)
    import ray
    from ray._raylet import (  # type: ignore[attr-defined]
        AuthenticationTokenLoader,
        Config,
        GcsClient,
    )

    require_answer(node.address)
    Config.initialize("")  # reads the environment again
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        # Asked once, since ray.init would repeat a question that is refused for 20 s.
        GcsClient(address=node.address).internal_kv_get(b"session_name", b"session", timeout=PROBE_TIMEOUT_S)
        with _ray_held_back(node.node_ip):
            ray.init(address=node.address, namespace=namespace, log_to_driver=False, configure_logging=False)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        cause = " ".join(str(error).split()).split(". ")[0]
        raise LlumnixError(f"The Ray cluster at {node.address} cannot be used: {cause}.") from error


def disconnect() -> None:
    """Stop being a driver; detached actors live on."""
    import ray

    ray.shutdown()


@contextlib.contextmanager
def _ray_held_back(node_ip: str) -> Iterator[None]:
    """Keep ray.init from four habits: replacing a loopback address by an outer one (where nothing of ours
    listens), taking over SIGTERM, logging what it does, and printing a paragraph for each death from then on
    (we say it in one line)."""
    from ray._private import ray_constants, worker

    logger, level = logging.getLogger("ray"), logging.getLogger("ray").level
    multi_node = ray_constants.ENABLE_RAY_CLUSTER  # read at each call; False keeps loopback addresses
    on_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if on_main_thread else None
    listen_error_messages = worker.listen_error_messages
    worker.listen_error_messages = lambda *_: None  # the target of a thread that ray.init starts
    logger.setLevel(logging.ERROR)
    ray_constants.ENABLE_RAY_CLUSTER = multi_node and node_ip != LOOPBACK_IP
    try:
        yield
    finally:
        worker.listen_error_messages = listen_error_messages
        ray_constants.ENABLE_RAY_CLUSTER = multi_node
        logger.setLevel(level)
        if on_main_thread:
            signal.signal(signal.SIGTERM, handler)
