"""A real cluster for tests: llumnixd as a process, on free loopback ports, with a state of its own."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

from llumnix.cluster import leftovers

READY_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 120.0
RESTART_S = 180.0

# One for all: each new client reads the machine's certificates, which costs more than the call.
# Without keep-alive: a connection that the server closes just when it is used again would fail the call.
http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


@functools.cache
def trust(certificate: str | None) -> ssl.SSLContext:
    """What a client of a cluster trusts: its certificate, or those of the machine."""
    return ssl.create_default_context(cafile=certificate)


# Below those the kernel gives to outgoing connections: nobody takes one between the choice and its use.
_ports = iter(random.SystemRandom().sample(range(12_000, 20_000), 4_000))


def free_port() -> int:
    """A port of the loopback interface that nobody has; each is given once."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port is left")


def settings(state_dir: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """The quickstart's configuration with small KV caches; `changes` are merged in section by section."""
    base: dict[str, Any] = {
        "cluster": {"state_dir": str(state_dir)},
        # Logical: tests start more instances than this machine has cores.
        "ray": {"num_cpus": 16},
        "model": {"path": "builtin:tiny"},
        # A machine with too much to do is not what these tests look at.
        "instances": {"count": 2, "max": 8, "heartbeat_timeout_s": 60.0},
        "engine": {
            "max_model_len": 8192,
            "dtype": "float32",
            "kv_cache_memory_bytes": "64M",
            "enforce_eager": True,
        },
        "http": {"port": free_port(), "drain_timeout_s": 10.0},
        "admin": {"port": free_port()},
    }
    for section, values in changes.items():
        base[section] = {**base.get(section, {}), **values}
    return base


def to_toml(config: dict[str, Any]) -> str:
    """TOML of sections whose values JSON can write too (inline tables excepted)."""
    lines = []
    for section, values in config.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_value(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return json.dumps(value)


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str | Callable[[], str]) -> Any:
    """The condition's first true value; AssertionError naming `what` when the time is up."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s:g} s: {what if isinstance(what, str) else what()}")


@dataclass
class RunningCluster:
    """One llumnixd and everything it started."""

    config: dict[str, Any]
    config_path: Path
    process: subprocess.Popen[str]
    output_path: Path
    run_ids: set[str] = field(default_factory=set)

    @property
    def state_dir(self) -> Path:
        return Path(self.config["cluster"]["state_dir"])

    @property
    def url(self) -> str:
        scheme = "https" if "tls_cert" in self.config["http"] else "http"
        return f"{scheme}://127.0.0.1:{self.config['http']['port']}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.config['admin']['port']}"

    def output(self) -> str:
        return self.output_path.read_text()

    def client(self, **options: Any) -> openai.OpenAI:
        """A client that trusts the cluster's certificate and bears its first key, if it has them."""
        section = self.config["http"]
        defaults: dict[str, Any] = {
            "base_url": f"{self.url}/v1",
            "api_key": section["api_keys"][0]["key"] if "api_keys" in section else "none",
            "max_retries": 0,
            "timeout": 60,
        }
        context = trust(section.get("tls_cert"))
        defaults["http_client"] = openai.DefaultHttpxClient(verify=context)
        return openai.OpenAI(**{**defaults, **options})

    def admin(self, method: str, path: str, **options: Any) -> Any:
        """A call of the admin API with its own token; the parsed answer, HTTPStatusError for an error."""
        response = self.admin_response(method, path, **options)
        response.raise_for_status()
        return response.json()

    def admin_response(self, method: str, path: str, **options: Any) -> httpx.Response:
        token = (self.state_dir / "admin.token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        return http.request(method, f"{self.admin_url}{path}", headers=headers, **options)

    def instances(self) -> dict[str, dict[str, Any]]:
        return {item["id"]: item for item in self.admin("GET", "/v1/instances")["items"]}

    def api_servers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.admin("GET", "/v1/cluster")["api_servers"]
        return found

    def serving(self) -> list[str]:
        """Instances that take requests."""
        return [key for key, item in self.instances().items() if item["state"] == "running"]

    def requests(self, **filters: str) -> list[dict[str, Any]]:
        """The unfinished requests that the admin API lists."""
        found: list[dict[str, Any]] = self.admin("GET", "/v1/requests", params={"limit": "1000", **filters})[
            "items"
        ]
        return found

    def migrations(self, state: str) -> list[dict[str, Any]]:
        listed = self.admin("GET", "/v1/migrations?limit=1000")["items"]
        return [migration for migration in listed if migration["state"] == state]

    @contextlib.contextmanager
    def cordoned(self, *instances: str) -> Iterator[None]:
        """They get no new requests."""
        for instance in instances:
            assert self.admin("POST", f"/v1/instances/{instance}/cordon")["state"] == "cordoned"
        try:
            yield
        finally:
            for instance in instances:
                assert self.admin("POST", f"/v1/instances/{instance}/uncordon")["state"] == "running"

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.admin("GET", "/v1/events?limit=1000")["items"] if e["kind"] == kind]

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"llumnixd ended with {self.process.returncode}:\n{self.output()}")
            with contextlib.suppress(httpx.TransportError):
                is_ready = http.get(f"{self.admin_url}/readyz", timeout=5).status_code == 200
                return is_ready and all(s["state"] == "serving" for s in self.api_servers())
            return False

        wait_for(ready, timeout_s, lambda: f"the cluster ready; its output:\n{self.output()}")
        self.note_run()

    def note_run(self) -> None:
        run = leftovers.read_run(self.state_dir)
        if run is not None:
            self.run_ids.add(run.run_id)

    def processes(self) -> list[psutil.Process]:
        """What runs of this cluster, llumnixd itself excepted."""
        return [process for run_id in self.run_ids for process in leftovers.find(run_id)]

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM once, and wait; the exit code."""
        self.note_run()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """Whatever a test has come to: nothing of it is left after this."""
        self.note_run()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for run_id in self.run_ids:
            leftovers.end(run_id, grace_s=0)
            leftovers.remove_files(run_id, Path(f"/tmp/llx-{run_id}"))

    def leftovers(self) -> list[str]:
        """Processes, shared memory and directories that are still there."""
        found = [f"{process.pid} {process.name()}" for process in self.processes()]
        for run_id in self.run_ids:
            found += [
                str(path)
                for path in (Path(f"/dev/shm/llx-{run_id}"), Path(f"/tmp/llx-{run_id}"))
                if path.exists()
            ]
        return found


def launch(
    config: dict[str, Any], directory: Path, *options: str, env: Mapping[str, str] | None = None
) -> RunningCluster:
    """Start llumnixd, with further `options` and environment variables; does not wait for it."""
    directory.mkdir(parents=True, exist_ok=True)
    config_path = directory / "cluster.toml"
    config_path.write_text(to_toml(config))
    output_path = directory / "llumnixd.out"
    with output_path.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "llumnix.cli", "--config", str(config_path), *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            start_new_session=True,
        )
    return RunningCluster(config, config_path, process, output_path)


@contextlib.contextmanager
def running(
    config: dict[str, Any], directory: Path, env: Mapping[str, str] | None = None
) -> Iterator[RunningCluster]:
    """A cluster that is ready, and stopped with nothing left behind at the end."""
    cluster = launch(config, directory, env=env)
    try:
        cluster.wait_ready()
        yield cluster
        assert cluster.stop() == 0, cluster.output()
        assert cluster.leftovers() == []
    finally:
        cluster.end()


def wait_until_idle(cluster: RunningCluster) -> None:
    """No instance and no list knows of a request any more."""

    def idle() -> bool:
        loads = [i["running"] + i["waiting"] for i in cluster.instances().values()]
        return not any(loads) and not cluster.requests()

    wait_for(idle, 60, "the cluster is idle")
