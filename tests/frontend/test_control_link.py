"""An API server's line to llumnixd, across llumnixd's restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import zmq
import zmq.asyncio

from llumnix.frontend.control_link import ControlLink
from llumnix.sockets import open_async_socket
from llumnix.wire import ApiServerServes, ApiServerUp, StopServing, ToManager, codec, ipc_endpoints

TIMEOUT_S = 20


class Manager:
    """llumnixd's end of the line."""

    def __init__(self, context: zmq.asyncio.Context, address: str) -> None:
        self._socket = open_async_socket(context, zmq.ROUTER, address, bind=True, curve=None)
        self._codec = codec()
        self._identity = b""

    async def next(self) -> ToManager:
        self._identity, payload = await asyncio.wait_for(self._socket.recv_multipart(), TIMEOUT_S)
        return self._codec.to_manager.decode(payload)

    async def say_stop(self) -> None:
        await self._socket.send_multipart([self._identity, self._codec.encoder.encode(StopServing(1.0))])

    def close(self) -> None:
        self._socket.close()


async def test_the_next_llumnixd_is_told_who_is_there(tmp_path: Path) -> None:
    endpoints = ipc_endpoints(tmp_path, 1)
    obeyed: asyncio.Queue[object] = asyncio.Queue()
    with zmq.asyncio.Context() as context:
        first = Manager(context, endpoints.control.commands)
        link = ControlLink(endpoints, index=0, pid=77)
        running = asyncio.create_task(link.run(obeyed.put_nowait))
        assert await first.next() == ApiServerUp(0, 77)
        first.close()
        second = Manager(context, endpoints.control.commands)
        try:
            assert await second.next() == ApiServerUp(0, 77)
            link.send(ApiServerServes(0))
            assert await second.next() == ApiServerServes(0)
            await second.say_stop()
            assert await asyncio.wait_for(obeyed.get(), TIMEOUT_S) == StopServing(1.0)
        finally:
            second.close()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await link.close()
