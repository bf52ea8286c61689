"""The Ray node of this machine: as a former llumnixd left it, or a new one."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llumnix.admin.tokens import read_token
from llumnix.cluster import ledger, leftovers, ray_driver, ray_node
from llumnix.cluster.lock import ClusterLock
from llumnix.cluster.ray_node import RayNode
from llumnix.config import Config, changed, digests
from llumnix.errors import StartupError

RAY_TOKEN_FILE = "ray.token"

Record = Callable[[str, str, str, str], None]
"""Writes (kind, severity, target, message) to the journal."""


def keeper_lock(state_dir: Path) -> ClusterLock:
    """Held by `llumnixd --head` while it keeps the node: then no other llumnixd starts or ends it."""
    return ClusterLock(state_dir / "head")


def is_kept(state_dir: Path) -> bool:
    """Whether a `llumnixd --head` keeps the node."""
    try:
        with keeper_lock(state_dir):
            return False
    except StartupError:
        return True


def living(state_dir: Path) -> RayNode | None:
    """The recorded node, if all of Ray's own processes of it live."""
    run = leftovers.read_run(state_dir)
    if run is None or run.node is None:
        return None
    node = RayNode.from_json(run.node)
    return node if node.lives() else None


def obtain(config: Config, record: Record, *, kept: bool) -> RayNode:
    """The living node, or else a new one, with what was left of the last one ended first.

    `kept`: a `llumnixd --head` keeps the node, and only it may start or end one (StartupError).
    """
    state_dir = config.cluster.state_dir
    run, node = leftovers.read_run(state_dir), living(state_dir)
    keys = changed(run.ray or {}, _ray_settings(config)) if run is not None and node is not None else []
    if node is not None and not keys:
        return node
    reason = f"{', '.join(keys)} changed" if keys else "its Ray node is dead"
    if kept:
        raise StartupError(
            f"The Ray node that llumnixd --head keeps cannot be used: {reason}. Restart that process."
        )
    ended = leftovers.clean_previous_run(state_dir)
    ledger.forget(state_dir)
    if ended:
        record(
            "cluster.cleaned", "warning", "cluster", f"ended {len(ended)} processes of a former run: {reason}"
        )
    return _start(config)


def stop(config: Config, node: RayNode, grace_s: float) -> None:
    """End the node with all that runs on it."""
    ray_node.stop(node, grace_s)
    ledger.forget(config.cluster.state_dir)
    leftovers.forget_run(config.cluster.state_dir)


def _start(config: Config) -> RayNode:
    state_dir, ray = config.cluster.state_dir, config.ray
    run = leftovers.new_run(ray.temp_dir or Path("/tmp"))
    leftovers.record_run(state_dir, run)
    if ray.address == "local":
        node = ray_node.start_head(
            temp_dir=Path(run.temp_dir),
            node_ip=ray.node_ip,
            port=ray.port,
            num_cpus=ray.num_cpus,
            num_gpus=ray.num_gpus,
            dashboard=ray.dashboard,
            token=_ray_token(state_dir),
            run_id=run.run_id,
            env={},
        )
    else:
        node = ray_node.join(
            address=ray_driver.find_local_head() if ray.address == "auto" else ray.address,
            temp_dir=Path(run.temp_dir),
            node_ip=ray.node_ip,
            num_cpus=ray.num_cpus,
            num_gpus=ray.num_gpus,
            token=_ray_token(state_dir),
            run_id=run.run_id,
            env={},
        )
    leftovers.record_run(state_dir, replace(run, node=node.to_json(), ray=_ray_settings(config)))
    return node


def _ray_settings(config: Config) -> dict[str, str]:
    return {key: digest for key, digest in digests(config).items() if key.startswith("ray.")}


def _ray_token(state_dir: Path) -> str:
    """The cluster's Ray token, made at the first start; joining machines get a copy of its file."""
    path = state_dir / RAY_TOKEN_FILE
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
    return read_token(path, "ray token")
