"""A side in a process of its own, with the same methods; it can be stopped and killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.engine.transport.sides import WAIT_S, Side

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.engine.transport.sides"])


def _serve(pipe: Connection, arguments: dict[str, Any]) -> None:
    side = Side(**arguments)
    while True:
        try:
            name, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((getattr(side, name)(*args), None))
        except Exception as error:  # noqa: BLE001 (told to the test, which fails)
            pipe.send((None, f"{type(error).__name__}: {error}"))


class PeerSide:
    """Passes every call of Side's methods on to the process."""

    def __init__(self, **arguments: Any) -> None:
        self._pipe, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(theirs, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self._pipe.send((name, args))
            assert self._pipe.poll(WAIT_S), f"the peer did not answer {name}"
            result, error = self._pipe.recv()
            assert error is None, error
            return result

        return call

    def stop(self) -> None:
        """SIGSTOP: the process hangs, its sockets stay."""
        os.kill(self._pid(), signal.SIGSTOP)
        stat = Path(f"/proc/{self._pid()}/stat")
        deadline = time.monotonic() + WAIT_S
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def resume(self) -> None:
        os.kill(self._pid(), signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self._pid(), signal.SIGKILL)
        self.process.join(WAIT_S)

    def end(self) -> None:
        """Whatever state it is in."""
        if self.process.is_alive():
            self.kill()
        self._pipe.close()
        self.process.close()

    def _pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid
