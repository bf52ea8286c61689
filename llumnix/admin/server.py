"""Serves the admin API inside the daemon's running event loop."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from llumnix.admin.api import build_app
from llumnix.admin.control import ClusterControl
from llumnix.admin.journal import Journal
from llumnix.admin.sse import KEEP_ALIVE_S, EventFeed
from llumnix.admin.tokens import TokenBook
from llumnix.errors import ConfigError, StartupError

log = logging.getLogger(__name__)

# What a client that does not read its answer may hold up a stop.
STOP_TIMEOUT_S = 1


class _QuietServer(uvicorn.Server):
    """uvicorn without signal handlers: signals are the daemon's, which decides what stops when."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serving.set()


class AdminServer:
    """The admin API on an address: `start` once, `stop` once, both on the daemon's loop."""

    def __init__(
        self,
        control: ClusterControl,
        journal: Journal,
        tokens: TokenBook,
        log_dir: Path,
        host: str = "127.0.0.1",
        port: int = 8001,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        """Prepare to serve; port 0 takes a free one."""
        self._host = host
        self._port = port
        self._tokens = tokens
        self._task: asyncio.Task[None] | None = None
        self.app = build_app(control, journal, tokens, log_dir, keep_alive_s)
        self.feed: EventFeed = self.app.state.surroundings.feed

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    async def start(self) -> None:
        """Listen and serve; StartupError or ConfigError if the address cannot be had."""
        listener = self._bind()
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            log_level="warning",  # its lifecycle lines would be taken for the daemon's own
            server_header=False,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
        self._server = _QuietServer(config)
        self._task = asyncio.create_task(self._server.serve([listener]), name="admin-api")
        serving = asyncio.create_task(self._server.serving.wait())
        await asyncio.wait((self._task, serving), return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        if self._task.done():
            await self._task
        log.info("admin API at %s", self.url)

    async def stop(self) -> None:
        """End streams, finish what is being answered, and close; bounded by about STOP_TIMEOUT_S."""
        if self._task is None:
            return
        self.feed.close()
        self._server.should_exit = True
        await self._task
        self._task = None

    def _bind(self) -> socket.socket:
        """Return the listening socket. It is bound here, as uvicorn ends the process where it cannot bind."""
        try:
            infos = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise ConfigError(
                f"admin.host: {self._host!r} is no address of this machine ({error})"
            ) from error
        family, kind, protocol, _, address = infos[0]
        if self._tokens.empty and not ipaddress.ip_address(address[0]).is_loopback:
            raise ConfigError(
                f"admin.host: {self._host!r} is not loopback, expected a token to be configured"
            )
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                raise StartupError(
                    f"admin.port: {self._port} is in use on {self._host}, expected a free one"
                ) from error
            raise ConfigError(f"admin.host: cannot listen on {self._host}: {error.strerror}") from error
        return listener
