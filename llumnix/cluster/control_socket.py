"""The manager's two sockets: commands out to instances and API servers, news in from them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import zmq
import zmq.asyncio

from llumnix.errors import StartupError
from llumnix.log import get_logger
from llumnix.sockets import guard, open_async_socket
from llumnix.wire import ApiServerUp, Endpoints, FromManager, ToManager, codec

logger = get_logger(__name__)


class ControlSocket:
    """On the daemon's event loop. A command to somebody who is gone is dropped: deaths show elsewhere."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._codec = codec()
        self._context = zmq.asyncio.Context()
        self._guard = guard(self._context, endpoints.curve)
        self._commands = self._bind(zmq.ROUTER, endpoints.control.commands, endpoints)
        self._news = self._bind(zmq.PULL, endpoints.control.news, endpoints)
        self._api_servers: dict[int, bytes] = {}

    def _bind(self, kind: int, address: str, endpoints: Endpoints) -> Any:
        try:
            return open_async_socket(self._context, kind, address, bind=True, curve=endpoints.curve)
        except zmq.ZMQError as error:
            raise StartupError(
                f"llumnixd's own address {address} cannot be used: {error.strerror}."
            ) from None

    async def run(self, take: Callable[[ToManager], None]) -> None:
        """Hand every message to `take` until cancelled."""
        await asyncio.gather(self._read_commands(take), self._read_news(take))

    def tell_instance(self, uid: int, command: FromManager) -> None:
        self._send(uid.to_bytes(2, "little"), command)

    def tell_api_server(self, index: int, command: FromManager) -> None:
        identity = self._api_servers.get(index)
        if identity is not None:
            self._send(identity, command)

    def tell_api_servers(self, command: FromManager) -> None:
        for index in self._api_servers:
            self.tell_api_server(index, command)

    def forget_api_server(self, index: int) -> None:
        self._api_servers.pop(index, None)

    def close(self) -> None:
        self._commands.close()
        self._news.close()
        if self._guard is not None:
            self._guard.stop()
        self._context.term()

    async def _read_commands(self, take: Callable[[ToManager], None]) -> None:
        while True:
            identity, payload = await self._commands.recv_multipart()
            message = self._codec.to_manager.decode(payload)
            if isinstance(message, ApiServerUp):
                self._api_servers[message.index] = identity
            take(message)

    async def _read_news(self, take: Callable[[ToManager], None]) -> None:
        while True:
            take(self._codec.to_manager.decode(await self._news.recv()))

    def _send(self, identity: bytes, command: FromManager) -> None:
        sent = self._commands.send_multipart([identity, self._codec.encoder.encode(command)])
        error = sent.exception() if sent.done() else None
        if error is not None:
            logger.debug("%s to %r was not sent: %s", type(command).__name__, identity, error)
