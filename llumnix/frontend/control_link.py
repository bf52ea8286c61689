"""An API server's line to the manager: tables and commands in, what it saw out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq
import zmq.asyncio

from llumnix.sockets import open_async_socket
from llumnix.wire import ApiServerUp, Endpoints, FromManager, ToManager, codec


class ControlLink:
    """Sends are never lost while the manager is away: they wait in the socket until it is back."""

    def __init__(self, endpoints: Endpoints, index: int, pid: int) -> None:
        self._codec = codec()
        self._context = zmq.asyncio.Context()
        self._socket = open_async_socket(
            self._context,
            zmq.DEALER,
            endpoints.control.commands,
            bind=False,
            curve=endpoints.curve,
            identity=f"a{index}.{pid}".encode(),
        )
        self.send(ApiServerUp(index, pid))

    def send(self, message: ToManager) -> None:
        self._socket.send(self._codec.encoder.encode(message))

    async def run(self, obey: Callable[[FromManager], None]) -> None:
        """Hand every command to `obey`, in order, until cancelled."""
        while True:
            obey(self._codec.from_manager.decode(await self._socket.recv()))

    async def close(self) -> None:
        """Give what was just sent a moment to leave, then end."""
        await asyncio.sleep(0.05)
        self._socket.close()
        self._context.term()
