"""Seconds from a fresh clone to chat completions: `./install.sh --quickstart` with empty package caches.

Clones this repository's HEAD into a temporary directory, gives the clone's quickstart configuration a state
directory and free ports of its own, runs the command, asks for one chat completion streamed and one not, ends
the cluster by SIGTERM and expects exit code 0.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import openai
from rich.console import Console
from rich.table import Table

from tests.benchmarks import peer
from tests.e2e.running import free_port

BAR_S = 300.0
STOP_TIMEOUT_S = 60.0
REPOSITORY = Path(__file__).parents[2]
# Whatever was downloaded before does not count.
NO_CACHES = {"PIP_NO_CACHE_DIR": "1", "UV_NO_CACHE": "1"}


class Phases:
    """Named moments, in seconds since the clone began."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.at_s: dict[str, float] = {}

    def mark(self, name: str) -> None:
        self.at_s[name] = time.monotonic() - self._started


def clone(directory: Path) -> int:
    """A clone of HEAD whose configuration clashes with nothing on this machine; returns the HTTP port."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(directory)], check=True)
    port = free_port()
    with (directory / "configs" / "quickstart.toml").open("a") as config:
        config.write(f'\n[cluster]\nstate_dir = "{directory / "state"}"\n')
        config.write(f"\n[http]\nport = {port}\n\n[admin]\nport = {free_port()}\n")
    return port


@contextlib.contextmanager
def quickstart(directory: Path, environment: dict[str, str], on_line: Callable[[str], None]) -> Iterator[Any]:
    """`./install.sh --quickstart`; what it prints goes to `on_line`. Killed at the end if it still runs."""
    process = subprocess.Popen(
        ["./install.sh", "--quickstart"],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**_without_virtual_environment(), **environment, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(process.stdout, on_line), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(STOP_TIMEOUT_S)


def _read(output: IO[str], on_line: Callable[[str], None]) -> None:
    for line in output:
        on_line(line.rstrip())


def _without_virtual_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}


def wait_ready(process: subprocess.Popen[str], url: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"./install.sh --quickstart ended with {process.returncode}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"no answer at {url} after {timeout_s:g} s")


def ask(url: str, *, stream: bool) -> str:
    """One chat completion of a few tokens; its text."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    model = client.models.list().data[0].id
    answer: Any = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=16,
        stream=stream,
        extra_body={"ignore_eos": True},
    )
    if not stream:
        return str(answer.choices[0].message.content)
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer)


def run(directory: Path, environment: dict[str, str], timeout_s: float, console: Console) -> Phases:
    """The whole of it; raises RuntimeError if an answer or the exit code is not what it must be."""
    phases = Phases()
    port = clone(directory)
    phases.mark("cloned")

    def on_line(line: str) -> None:
        console.print(f"  {line}", markup=False, soft_wrap=True)
        if line.startswith("["):
            phases.mark(line.split("]", 1)[1].strip())
        elif line.startswith("ready after"):
            phases.mark("llumnixd is ready")

    url = f"http://127.0.0.1:{port}"
    with quickstart(directory, environment, on_line) as process:
        wait_ready(process, url, timeout_s)
        for stream in (True, False):
            if not ask(url, stream=stream):
                raise RuntimeError(f"an empty completion (stream={stream})")
            phases.mark(f"chat completion {'streamed' if stream else 'in one piece'}")
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_TIMEOUT_S)
        phases.mark("stopped")
        if code != 0:
            raise RuntimeError(f"exit code {code} after SIGTERM, expected 0")
    return phases


def report(phases: Phases, console: Console) -> float:
    """Prints the table and the last line; returns the seconds until both completions were there."""
    table = Table(title="from a fresh clone")
    for heading in ("by then", "seconds"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left")
    for name, at_s in sorted(phases.at_s.items(), key=lambda item: item[1]):
        table.add_row(name, f"{at_s:.1f}")
    console.print(table)
    answered_s = phases.at_s["chat completion in one piece"]
    ratio = peer.verdict(answered_s / BAR_S, 1.0, at_least=False)
    console.print(f"answered after {answered_s:.1f} s of {BAR_S:g} s: {ratio}")
    return answered_s


def main() -> None:
    parser = peer.parser(__doc__)
    parser.add_argument("--keep-caches", action="store_true", help="use the package caches of this account")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="give up after (default: %(default)s)")
    args = parser.parse_args()
    peer.unwind_on_sigterm()
    console = Console(highlight=False)
    parent = Path(tempfile.mkdtemp(prefix="bench-quickstart-"))
    try:
        environment = {} if args.keep_caches else NO_CACHES
        phases = run(parent / "llumnix", environment, args.timeout_s, console)
    finally:
        shutil.rmtree(parent, ignore_errors=True)
    answered_s = report(phases, console)
    peer.write_json(args.json, {"answered_s": answered_s, "at_s": phases.at_s})


if __name__ == "__main__":
    main()
