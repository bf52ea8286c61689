"""Completions that run in the background while a test does something to the cluster."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.running import RESTART_S, RunningCluster, trust, wait_for


class Stream(threading.Thread):
    """One streamed completion of `max_tokens` tokens each of `n` children, read on a thread of its own."""

    def __init__(self, cluster: RunningCluster, max_tokens: int, n: int = 1) -> None:
        super().__init__(daemon=True)
        self._client = cluster.client(timeout=120)
        self.max_tokens = max_tokens
        self._n = n
        self.id = ""
        self.chunks = 0
        self.tokens: int | None = None
        """In all, by its last event."""
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self._gone = False
        self.ended_at: float | None = None
        """time.monotonic() of its end, in error or not."""
        self.start()

    def run(self) -> None:
        try:
            with self._client.completions.create(
                model="tiny",
                prompt="Once upon a time",
                max_tokens=self.max_tokens,
                n=self._n,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            ) as chunks:
                for chunk in chunks:
                    self.id = chunk.id
                    for choice in chunk.choices:
                        self.chunks += 1
                        self.finish_reason = choice.finish_reason or self.finish_reason
                    self.tokens = chunk.usage.completion_tokens if chunk.usage else None
                    if self._gone:
                        return
        except (openai.APIError, httpx.HTTPError) as error:
            self.error = error
        finally:
            self.ended_at = time.monotonic()

    def close(self) -> None:
        """Go away at the next token, as a client does that lost interest."""
        self._gone = True

    def assert_undisturbed(self, timeout_s: float = 60.0) -> None:
        """It ends by itself with all of its tokens."""
        self.join(timeout_s)
        assert not self.is_alive(), f"stream {self.id} hangs after {self.chunks} events"
        assert self.error is None, self.error
        assert (self.finish_reason, self.tokens) == ("length", self.max_tokens)

    def assert_goes_on(self) -> None:
        """It brings further tokens, as if nothing had happened."""
        enough = self.chunks + 40
        wait_for(lambda: self.chunks >= enough or not self.is_alive(), 60, f"stream {self.id} goes on")
        assert self.error is None, self.error

    def assert_failed(self, *words: str) -> None:
        """It has ended in an error event that says why."""
        assert not self.is_alive(), f"stream {self.id} goes on after {self.chunks} events"
        assert self.error is not None, f"ended with {self.finish_reason} after {self.chunks} events"
        for word in words:
            assert word in str(self.error), str(self.error)


class Unread:
    """An unstreamed request under way whose answer nobody reads: it costs no CPU but the engine's."""

    def __init__(
        self, cluster: RunningCluster, name: str, max_tokens: int, path: str = "/v1/completions"
    ) -> None:
        self.id = f"cmpl-{name}"
        http = cluster.config["http"]
        body: dict[str, Any] = {"model": "tiny", "max_tokens": max_tokens, "ignore_eos": True}
        if "chat" in path:
            body["messages"] = [{"role": "user", "content": "Hello"}]
        else:
            body["prompt"] = "Once upon a time"
        content = json.dumps(body).encode()
        headers = {"host": "127.0.0.1", "x-request-id": name, "content-type": "application/json"}
        headers["content-length"] = str(len(content))
        if "api_keys" in http:
            headers["authorization"] = f"Bearer {http['api_keys'][0]['key']}"
        lines = [f"POST {path} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items())]
        self._socket = socket.create_connection(("127.0.0.1", http["port"]), timeout=60)
        if "tls_cert" in http:
            self._socket = trust(http["tls_cert"]).wrap_socket(self._socket, server_hostname="127.0.0.1")
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + content)

    def close(self) -> None:
        """Go away, as a client does that lost interest."""
        self._socket.close()

    def assert_goes_on(self) -> None:
        """No answer is there yet, though something of TLS may be."""
        self._socket.settimeout(0)
        with pytest.raises((BlockingIOError, ssl.SSLWantReadError)):
            self._socket.recv(4096)


def row_of(cluster: RunningCluster, stream: Stream) -> dict[str, Any]:
    """The admin API's view of a running stream's request."""

    def row() -> dict[str, Any] | None:
        assert stream.is_alive(), f"stream {stream.id} ended after {stream.chunks} events: {stream.error}"
        return next((r for r in cluster.requests() if stream.id and r["response_id"] == stream.id), None)

    found: dict[str, Any] = wait_for(row, 60, "the request of a stream in the admin API")
    return found


@contextlib.contextmanager
def streams_on(
    cluster: RunningCluster, key: str, wanted: list[str], max_tokens: int = 7500
) -> Iterator[dict[str, Stream]]:
    """Long streams of which at least one has each of the `wanted` values of `key` in its row."""
    streams: list[Stream] = []
    found: dict[str, Stream] = {}
    try:
        for _ in range(16):
            if set(wanted) <= set(found):
                break
            stream = Stream(cluster, max_tokens)
            streams.append(stream)
            found.setdefault(str(row_of(cluster, stream)[key]), stream)
        assert set(wanted) <= set(found), f"streams only on {sorted(found)}"
        yield found
    finally:
        for stream in streams:
            stream.close()
        for stream in streams:
            stream.join(60)


def assert_comes_back(cluster: RunningCluster, instance: str, incarnation: int) -> None:
    """The instance is replaced by a later incarnation, and gets requests."""

    def back() -> bool:
        now = cluster.instances()[instance]
        return now["state"] == "running" and now["incarnation"] > incarnation

    wait_for(back, RESTART_S, f"{instance} serves again")
    with streams_on(cluster, "instance", [instance]) as streams:
        streams[instance].assert_goes_on()
