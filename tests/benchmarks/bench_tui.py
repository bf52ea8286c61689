"""llumnix-tui at 64 instances and 10,000 requests: key to repaint, CPU and memory of its process.

    python -m tests.benchmarks.bench_tui

The real program runs in a pseudo-terminal against a canned server in a process of its own, whose figures
change with every round. A key's time ends when the terminal gets the moved cursor. Needs Linux.
"""

import asyncio
import fcntl
import multiprocessing
import os
import pty
import re
import select
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from llumnix.admin.schema import (
    EventPage,
    InstancePage,
    MigrationPage,
    MigrationTotals,
    NodePage,
    RequestPage,
)
from tests.tui.canned import NOW, Canned

REPO = Path(__file__).resolve().parent.parent.parent
PAGE = 1000
VARIANTS = 6
CURSOR = "▸".encode()
NOT_FOUND = b'{"error": {"code": "not_found", "message": "the canned server has no such route"}}'
KEY_TIMEOUT_S = 10.0
KEY_PAUSE_S = 0.13  # out of step with the program's own timers


def main(
    instances: int = 64,
    requests: int = 10_000,
    keys: int = 150,
    watch_s: Annotated[float, typer.Option(help="For how long CPU is measured while nobody types.")] = 20.0,
    size: str = "120x40",
) -> None:
    """Print the figures."""
    port = _free_port()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(port, instances, requests), daemon=True
    )
    server.start()
    try:
        _await_port(port)
        columns, rows = map(int, size.split("x"))
        for screen, key in (("cluster", b"1"), ("requests", b"2")):
            with Program(port, columns, rows) as program:
                program.send(key)
                program.drain(4.0)
                cpu = program.cpu_share(watch_s)
                program.send(b"T" if screen == "requests" else b"K")
                program.drain(2.0)
                times = program.key_times(keys)
                delays = f"p50 {at(times, 0.5):.1f}  p95 {at(times, 0.95):.1f}  max {times[-1]:.1f}"
                use = f"CPU {cpu:.0%} of a core   peak memory {program.peak_mib():.0f} MiB"
                print(f"{screen:9} key to repaint ms: {delays}   {use}")
    finally:
        server.terminate()
        server.join()


def at(ordered: list[float], share: float) -> float:
    """Return a percentile of sorted values."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class Program:
    """llumnix-tui in a pseudo-terminal."""

    def __init__(self, port: int, columns: int, rows: int) -> None:
        self._terminal, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        command = "from llumnix_tui.cli import main; main()"
        path = f"{REPO}{os.pathsep}{REPO / 'tui'}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", command, "--url", f"http://127.0.0.1:{port}"],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": path},
            start_new_session=True,
        )
        os.close(inner)
        self.drain(4.0)

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def send(self, keys: bytes) -> None:
        """Type."""
        os.write(self._terminal, keys)

    def drain(self, seconds: float) -> None:
        """Read what the program paints."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._read(left)

    def key_times(self, count: int) -> list[float]:
        """Return the sorted milliseconds from a key to the terminal getting the moved cursor."""
        times = []
        for _, key in zip(
            range(count), cycle((b"j", b"j", b"j", b"\x1b[6~", b"k", b"k", b"G", b"g")), strict=False
        ):
            self.drain(KEY_PAUSE_S)
            began = time.monotonic()
            self.send(key)
            seen = b""
            while CURSOR not in seen:
                seen = seen[-len(CURSOR) :] + self._read(KEY_TIMEOUT_S)
                if time.monotonic() - began > KEY_TIMEOUT_S:
                    raise RuntimeError(f"the key {key!r} was not answered within {KEY_TIMEOUT_S} s")
            times.append(1000 * (time.monotonic() - began))
        return sorted(times)

    def cpu_share(self, seconds: float) -> float:
        """Return the CPU time used per second over a while."""
        before, began = self._cpu_s(), time.monotonic()
        self.drain(seconds)
        return (self._cpu_s() - before) / (time.monotonic() - began)

    def peak_mib(self) -> float:
        """Return the largest resident size so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _read(self, timeout_s: float) -> bytes:
        if self._process.poll() is not None:
            raise RuntimeError(f"llumnix-tui ended with code {self._process.returncode}")
        ready, _, _ = select.select([self._terminal], [], [], timeout_s)
        return os.read(self._terminal, 1 << 20) if ready else b""


def serve(port: int, num_instances: int, num_requests: int) -> None:
    """Serve canned answers, encoded beforehand; the next variant with each GET of the cluster."""
    canned = Canned(num_instances, num_requests, num_nodes=8)
    variants = [encoded(canned, NOW + number) for number in range(VARIANTS)]
    turns, current = cycle(variants), variants[0]

    async def answer(request: Request) -> Response:
        nonlocal current
        path = request.url.path
        if path == "/v1/cluster":
            current = next(turns)
        found = current.get((path, request.query_params.get("cursor", "")))
        if found is None:
            return Response(NOT_FOUND, 404, media_type="application/json")
        return Response(found, media_type="application/json")

    async def stream(request: Request) -> Response:
        return StreamingResponse(_silence(request), media_type="text/event-stream")

    routes = [Route("/v1/events/stream", stream), Route("/{path:path}", answer)]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="error", access_log=False)


def encoded(canned: Canned, at_time: float) -> dict[tuple[str, str], bytes]:
    """Return the answers of one moment by path and cursor."""
    snapshot = canned.snapshot(at_time)
    requests = snapshot.requests or ()
    answers: dict[tuple[str, str], BaseModel] = {
        ("/v1/cluster", ""): snapshot.cluster,
        ("/v1/instances", ""): InstancePage(items=snapshot.instances),
        ("/v1/nodes", ""): NodePage(items=snapshot.nodes),
        ("/v1/migrations", ""): MigrationPage(items=snapshot.migrations),
        ("/v1/migration-totals", ""): snapshot.migration_totals or MigrationTotals(since=at_time),
        ("/v1/events", ""): EventPage(items=canned.events()[::-1]),
    }
    for begin in range(0, len(requests), PAGE):
        following = str(begin + PAGE) if begin + PAGE < len(requests) else None
        page = RequestPage(items=requests[begin : begin + PAGE], next=following)
        answers["/v1/requests", str(begin) if begin else ""] = page
    return {key: model.model_dump_json().encode() for key, model in answers.items()}


async def _silence(request: Request) -> AsyncIterator[str]:
    while not await request.is_disconnected():
        yield ": keep-alive\n\n"
        await asyncio.sleep(5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    typer.run(main)
