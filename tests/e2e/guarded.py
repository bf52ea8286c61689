"""The cluster that refuses and ranks requests: TLS, API keys, classes, two seats on each instance."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.running import RunningCluster, settings, wait_for, wait_until_idle
from tests.e2e.streams import Unread

MAX_RUNNING = 2
MAX_QUEUED = 8
TEAM, LIMITED, IMPORTANT = "key-of-the-team", "key-of-the-limited", "key-of-the-important"
API_KEYS = [
    {"name": "team", "key": TEAM, "max_priority": "high"},
    {"name": "limited", "key": LIMITED, "priority": "normal", "max_priority": "normal"},
    {"name": "important", "key": IMPORTANT, "priority": "high"},
]


def guarded_settings(directory: Path) -> dict[str, Any]:
    """Two instances of two seats each behind two API servers with TLS and API keys."""
    certificate, key = self_signed(directory)
    return settings(
        directory / "state",
        # Every request goes to an instance at once, so that the engines' own queues are what is looked at.
        scheduler={"policy": "llumnix"},
        engine={"max_num_seqs": MAX_RUNNING},
        http={
            "api_servers": 2,
            "api_keys": API_KEYS,
            "max_queued": MAX_QUEUED,
            "tls_cert": str(certificate),
            "tls_key": str(key),
            "vllm": {
                "enable_auto_tool_choice": True,
                "tool_call_parser": "hermes",
                "enable_ssl_refresh": True,
            },
        },
    )


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A new certificate and its key, in place of those that are there."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def trusting(cluster: RunningCluster) -> httpx.Client:
    """An HTTP client that trusts the cluster's certificate and bears no key."""
    context = ssl.create_default_context(cafile=cluster.config["http"]["tls_cert"])
    return httpx.Client(base_url=cluster.url, verify=context, timeout=180)


class Ask(threading.Thread):
    """An unstreamed completion under way, with a name that its request id carries."""

    def __init__(
        self,
        cluster: RunningCluster,
        name: str,
        *,
        key: str = TEAM,
        headers: dict[str, str] | None = None,
        **body: Any,
    ) -> None:
        super().__init__(daemon=True)
        self._client = trusting(cluster)
        self._headers = {"authorization": f"Bearer {key}", "x-request-id": name, **(headers or {})}
        # Long enough to tell by the answers' times which of two came first.
        self._body = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 60, **body}
        self._body.setdefault("ignore_eos", True)
        self.response_id = f"cmpl-{name}"
        self.answer: httpx.Response | None = None
        self.ended_at = 0.0
        """time.monotonic() when the answer was there."""
        self.start()

    def run(self) -> None:
        with self._client:
            self.answer = self._client.post("/v1/completions", json=self._body, headers=self._headers)
        self.ended_at = time.monotonic()

    def status(self) -> int:
        """Wait for the answer; its status."""
        self.join(180)
        assert self.answer is not None, f"{self.response_id} has no answer"
        return self.answer.status_code


def ask_in_turn(cluster: RunningCluster, *names: str, **options: Any) -> list[Ask]:
    """Requests for a full cluster, each in a queue before the next one is sent."""
    asked = []
    for name in names:
        before = num_waiting(cluster)
        asked.append(Ask(cluster, name, **options))
        wait_for(lambda n=before: num_waiting(cluster) > n, 60, f"{name} is queued")
    return asked


def num_waiting(cluster: RunningCluster) -> int:
    return sum(instance["waiting"] for instance in cluster.instances().values())


def rows(cluster: RunningCluster, response_id: str) -> list[dict[str, Any]]:
    """The requests of one response in the admin API."""
    return cluster.requests(response_id=response_id)


@contextlib.contextmanager
def full(cluster: RunningCluster) -> Iterator[list[Unread]]:
    """All seats of the only open instance taken by long requests; closing one frees its seat."""
    wait_until_idle(cluster)
    seats = [Unread(cluster, f"seat-{k}", 8000) for k in range(MAX_RUNNING)]
    try:
        wait_for(lambda: cluster.instances()["i0"]["running"] == MAX_RUNNING, 60, "all seats are taken")
        yield seats
    finally:
        for seat in seats:
            seat.close()
        wait_until_idle(cluster)
