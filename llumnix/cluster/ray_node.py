"""Start, join and stop our own Ray nodes: they outlive llumnixd and are closed to whoever lacks the token."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llumnix.cluster import leftovers
from llumnix.errors import StartupError

OBJECT_STORE_BYTES = 80 * 2**20  # Ray's minimum is 75 MiB; nothing big goes through it
LOG_ROTATE_BYTES = 10 * 2**20
LOG_BACKUPS = 2
START_TIMEOUT_S = 60.0
PROBE_TIMEOUT_S = 5.0

_LAUNCHER = Path(__file__).with_name("ray_launch.py")
_TOKEN_FILE_NAME = "ray.token"
_RAY_DIR_NAME = "r"
_MAX_SOCKET_PATH_BYTES = 107
_RAY_SOCKET_SUFFIX = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.99"
LOOPBACK_IP = "127.0.0.1"
_PORTS = range(
    20000, 32000
)  # below Linux's ephemeral ports, so that no outgoing connection takes one meanwhile
_FATAL_LOG_LINE = re.compile(r"^\[[^\]]* [CE] [^\]]*\] (?:\(\w+\) )?\S+:\d+: (?P<message>.+)$")

_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # or Ray kills engines when the machine's memory is nearly full
    "RAY_worker_niceness": "0",  # Ray's default is 15: engines would starve beside anything else
    "RAY_worker_oom_score_adjustment": "0",  # Ray's default makes the kernel kill engines first
    "RAY_prestart_worker_first_driver": "0",  # idle workers would compete with starting instances
    "RAY_enable_worker_prestart": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_agent_manager_retry_interval_ms": "100",
    "RAY_ROTATION_MAX_BYTES": str(LOG_ROTATE_BYTES),
    "RAY_ROTATION_BACKUP_COUNT": str(LOG_BACKUPS),
    "RAY_process_group_cleanup_enabled": "1",  # the workers of a killed engine are ended too
    "SPT_NOENV": "1",  # a process title that overwrites /proc/PID/environ would hide the run's marker
}


@dataclass(frozen=True)
class RayNode:
    """A Ray node that runs on this machine: what is needed to connect to it and to end it."""

    address: str  # of the head, host:port
    node_ip: str
    node_id: str
    temp_dir: Path  # private directory of the run; Ray's own files lie below it
    logs_dir: Path
    run_id: str
    raylet_pid: int
    gcs_pid: int | None  # None on joined nodes

    @property
    def token_path(self) -> Path:
        """File (mode 0600) with the cluster's Ray token."""
        return self.temp_dir / _TOKEN_FILE_NAME

    def lives(self) -> bool:
        """Whether Ray's own processes of this node all live."""
        pids = [self.raylet_pid] if self.gcs_pid is None else [self.raylet_pid, self.gcs_pid]
        return all(leftovers.lives(self.run_id, pid) for pid in pids)

    def to_json(self) -> dict[str, Any]:
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> RayNode:
        paths = {name: Path(fields[name]) for name in ("temp_dir", "logs_dir")}
        return RayNode(**{**fields, **paths})


def start_head(
    *,
    temp_dir: Path,
    node_ip: str,
    port: int | None,
    num_cpus: int | None,
    num_gpus: int | None,
    dashboard: bool,
    token: str,
    run_id: str,
    env: Mapping[str, str],
) -> RayNode:
    """Start a Ray head; blocks until it takes drivers; on StartupError nothing of it is left.

    `temp_dir` must not exist yet and belongs to the run; `port` None takes a free one; `env` reaches every
    process of the node, workers included, unlike the caller's own RAY_* variables.
    """
    _require_local(node_ip)
    if port is None:
        port = _free_port(node_ip)
    else:
        _require_free(node_ip, port)
    params: dict[str, object] = {
        "gcs_server_port": port,
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "include_dashboard": dashboard,
    }
    return _start(params, temp_dir, node_ip, token, run_id, env)


def join(
    *,
    address: str,
    temp_dir: Path,
    node_ip: str,
    num_cpus: int | None,
    num_gpus: int | None,
    token: str,
    run_id: str,
    env: Mapping[str, str],
) -> RayNode:
    """Start a further Ray node, with a run_id of its own, of the head at `address`; else as start_head."""
    _require_local(node_ip)
    require_answer(address)
    params: dict[str, object] = {
        "gcs_address": address,
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "include_dashboard": None,
    }
    return _start(params, temp_dir, node_ip, token, run_id, env)


def stop(node: RayNode, grace_s: float) -> list[leftovers.Leftover]:
    """End all processes of a node, its actors too, by force after `grace_s`, and remove its files."""
    ended = leftovers.end(node.run_id, grace_s)
    leftovers.remove_files(node.run_id, node.temp_dir)
    return ended


def require_answer(address: str) -> None:
    """Raise StartupError unless something accepts connections at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise StartupError(f"No Ray head answers at {address}: {error}.") from error


def _start(
    params: dict[str, object], temp_dir: Path, node_ip: str, token: str, run_id: str, env: Mapping[str, str]
) -> RayNode:
    _require_short(temp_dir)
    leftovers.claim(run_id, temp_dir)
    try:
        (temp_dir / _RAY_DIR_NAME).mkdir()
        _write_token(temp_dir / _TOKEN_FILE_NAME, token)
        params |= {
            "node_ip_address": node_ip,
            "node_name": node_ip,
            "temp_dir": str(temp_dir / _RAY_DIR_NAME),
            "plasma_directory": str(_make_plasma_dir(run_id, temp_dir)),
            "object_store_memory": OBJECT_STORE_BYTES,
            "runtime_env_agent_port": _free_port(node_ip),
            "no_monitor": True,
            "include_log_monitor": False,
        }
        result = _run_launcher(params, _environment(temp_dir, run_id, env), temp_dir)
    except BaseException:
        leftovers.end(run_id, grace_s=0.0)
        leftovers.remove_files(run_id, temp_dir)
        raise
    return RayNode(node_ip=node_ip, temp_dir=temp_dir, run_id=run_id, **result)


def _run_launcher(params: dict[str, object], env: dict[str, str], temp_dir: Path) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_LAUNCHER), json.dumps(params)],
            env=env,
            cwd=temp_dir,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            start_new_session=True,  # a terminal's Ctrl-C and hang-up reach none of Ray's processes
        )
    except subprocess.TimeoutExpired:
        raise StartupError(f"Ray did not start within {START_TIMEOUT_S:.0f} s.") from None
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or [f"its launcher ended with code {done.returncode}"]
        raise StartupError(f"Ray did not start: {lines[-1]}.") from None
    if "error" in result:
        cause = _last_word(temp_dir) or result["error"]
        raise StartupError(f"Ray did not start: {cause.rstrip('.')}.")
    return result | {"logs_dir": Path(result["logs_dir"])}


def _environment(temp_dir: Path, run_id: str, env: Mapping[str, str]) -> dict[str, str]:
    # A RAY_ variable of somebody's shell (an address, a token, a debugging switch) must not change our nodes.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ours = {
        leftovers.RUN_ID_VARIABLE: run_id,
        "RAY_AUTH_TOKEN_PATH": str(temp_dir / _TOKEN_FILE_NAME),
        "TMPDIR": str(temp_dir),
    }
    # What torch has compiled outlives the run.
    compiled = {"TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"}
    return compiled | inherited | _SETTINGS | dict(env) | ours


def _make_plasma_dir(run_id: str, temp_dir: Path) -> Path:
    shm = leftovers.shm_dir(run_id)
    with contextlib.suppress(OSError):  # no /dev/shm here
        if shutil.disk_usage(shm.parent).free >= 2 * OBJECT_STORE_BYTES and os.access(shm.parent, os.W_OK):
            leftovers.claim(run_id, shm)
            return shm
    plasma_dir = temp_dir / "plasma"
    plasma_dir.mkdir()
    return plasma_dir


def _write_token(path: Path, token: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)


def _require_short(temp_dir: Path) -> None:
    longest = f"{temp_dir}/{_RAY_DIR_NAME}{_RAY_SOCKET_SUFFIX}"
    excess = len(os.fsencode(longest)) - _MAX_SOCKET_PATH_BYTES
    if excess > 0:
        raise StartupError(
            f"Ray's directory {temp_dir} (ray.temp_dir) is {excess} bytes too long for Unix sockets."
        )


def _require_local(node_ip: str) -> None:
    try:
        if ipaddress.IPv4Address(node_ip).is_loopback and node_ip != LOOPBACK_IP:
            raise StartupError(f"Ray keeps to the loopback interface only as {LOOPBACK_IP}, not {node_ip}.")
        _try_bind(node_ip, 0)
    except ValueError as error:
        raise StartupError(f"Ray's node address must be a numeric IPv4 address, not {node_ip!r}.") from error
    except OSError as error:
        raise StartupError(
            f"{node_ip} is no address of this machine for Ray to use: {error.strerror}."
        ) from error


def _require_free(node_ip: str, port: int) -> None:
    try:
        _try_bind(node_ip, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise StartupError(f"Ray's port {port} (ray.port) on {node_ip}: {error.strerror}.") from error
        raise StartupError(
            f"Ray's port {port} (ray.port) on {node_ip} is in use by another process."
        ) from error


def _try_bind(node_ip: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((node_ip, port))


def _free_port(node_ip: str) -> int:
    for port in random.sample(_PORTS, 100):
        with contextlib.suppress(OSError):  # taken: try the next
            _try_bind(node_ip, port)
            return port
    raise StartupError(f"No free port was found on {node_ip} between {_PORTS[0]} and {_PORTS[-1]}.")


def _last_word(temp_dir: Path) -> str | None:
    """What the head's server or the raylet said before it gave up, as far as it is written down."""
    logs = temp_dir / _RAY_DIR_NAME / "session_latest" / "logs"
    return _fatal_event(logs) or _fatal_log_message(logs)


def _fatal_event(logs: Path) -> str | None:
    """The message of a failed check: Ray writes it here before it ends the process, unlike its plain log,
    whose last lines it may lose at the exit."""
    for name in ("event_GCS.log", "event_RAYLET.log"):
        for event in map(json.loads, _lines(logs / "events" / name)):
            if event["severity"] == "FATAL":
                # FILE:LINE (PID: ..., errno: ... (...)):MESSAGE\n*** StackTrace ..., with the \n escaped.
                _, _, message = event["message"].partition("):")
                return str(message).replace("\\n", "\n").strip().splitlines()[0]
    return None


def _fatal_log_message(logs: Path) -> str | None:
    for name in ("raylet.err", "raylet.out", "gcs_server.err", "gcs_server.out"):
        matches = map(_FATAL_LOG_LINE.match, _lines(logs / name))
        messages = [match["message"].strip() for match in matches if match]
        if messages:
            return messages[-1]
    return None


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.exists() else []
