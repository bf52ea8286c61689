"""An API server's line to the manager: tables and commands in, what it saw out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq
import zmq.asyncio

from llumnix.sockets import open_async_socket
from llumnix.wire import ApiServerUp, Endpoints, FromManager, ToManager, codec


class ControlLink:
    """Sends wait in the socket while the manager is away; only one on its way as the manager dies is lost.

    Whoever comes back there is another llumnixd: it is told who we are before anything else that is new.
    """

    def __init__(self, endpoints: Endpoints, index: int, pid: int) -> None:
        self._codec = codec()
        self._up = ApiServerUp(index, pid)
        self._context = zmq.asyncio.Context()
        self._socket = open_async_socket(
            self._context,
            zmq.DEALER,
            endpoints.control.commands,
            bind=False,
            curve=endpoints.curve,
            identity=f"a{index}.{pid}".encode(),
        )
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.send(self._up)

    def send(self, message: ToManager) -> None:
        self._socket.send(self._codec.encoder.encode(message))

    async def run(self, obey: Callable[[FromManager], None]) -> None:
        """Hand every command to `obey`, in order, until cancelled."""
        await asyncio.gather(self._read(obey), self._introduce_again())

    async def _read(self, obey: Callable[[FromManager], None]) -> None:
        while True:
            obey(self._codec.from_manager.decode(await self._socket.recv()))

    async def _introduce_again(self) -> None:
        while True:
            await self._monitor.recv_multipart()
            self.send(self._up)

    async def close(self) -> None:
        """Give what was just sent a moment to leave, then end."""
        await asyncio.sleep(0.05)
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()
