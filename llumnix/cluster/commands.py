"""The manager's commands that have an answer, to instances and API servers, and its questions of both."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from llumnix.cluster.control_socket import ControlSocket
from llumnix.errors import RefusedError
from llumnix.wire import AbortRequest, Done, Move, PeerAddress, SetPriority, TellRequests

COMMAND_TIMEOUT_S = 5.0
_ROWS_TIMEOUT_S = 1.0


class Commands:
    """On the daemon's event loop. Commands raise RefusedError where they are refused or not answered."""

    def __init__(self, socket: ControlSocket) -> None:
        self._socket = socket
        self._open: dict[int, asyncio.Future[Done]] = {}
        # Not from 1: a late answer to a former llumnixd must not be taken for one to this.
        self._ids = itertools.count(time.monotonic_ns())

    def answer(self, done: Done) -> None:
        """What somebody said to a command; nobody may wait for it any more."""
        future = self._open.get(done.command_id)
        if future is not None and not future.done():
            future.set_result(done)

    async def set_priority(self, uid: int, request_id: str, priority: int) -> None:
        """Refused where the request is gone."""
        await self._ask(
            lambda command_id: self._socket.tell_instance(uid, SetPriority(command_id, request_id, priority))
        )

    async def set_held_priority(self, api_server: int, request_id: str, priority: int) -> None:
        """As set_priority, of a request that an API server holds."""
        await self._ask(
            lambda command_id: self._socket.tell_api_server(
                api_server, SetPriority(command_id, request_id, priority)
            )
        )

    async def migrate(
        self,
        source: int,
        request_id: str,
        target: int,
        address: PeerAddress,
        reason: str,
        then: Sequence[str],
    ) -> str:
        """Begin to move a request to the target at `address`, `then` others; the first migration's id."""
        return await self._ask(
            lambda command_id: self._socket.tell_instance(
                source, Move(command_id, request_id, target, address, reason, tuple(then))
            )
        )

    async def abort_request(self, api_server: int, request_id: str, reason: str) -> None:
        """Refused where the request is gone."""
        await self._ask(
            lambda command_id: self._socket.tell_api_server(
                api_server, AbortRequest(command_id, request_id, reason)
            )
        )

    def abort_unasked(self, api_server: int, request_id: str, reason: str) -> None:
        """As abort_request, but nobody waits for the answer: what has ended meanwhile needs no abort."""
        self._socket.tell_api_server(api_server, AbortRequest(next(self._ids), request_id, reason))

    async def have_rows_told(self, *, uids: Iterable[int] = (), api_servers: Iterable[int] = ()) -> None:
        """Have them tell their requests, behind all that they said before; not long for a stuck one."""
        tells = [partial(self._socket.tell_instance, uid) for uid in uids]
        tells += [partial(self._socket.tell_api_server, index) for index in api_servers]
        await asyncio.gather(*map(self._ask_for_rows, tells))

    async def _ask_for_rows(self, tell: Callable[[TellRequests], None]) -> None:
        with contextlib.suppress(RefusedError):
            await self._ask(lambda command_id: tell(TellRequests(command_id)), _ROWS_TIMEOUT_S)

    async def _ask(self, send: Callable[[int], None], timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        command_id = next(self._ids)
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._open[command_id] = future
        try:
            send(command_id)
            done = await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise RefusedError(f"no answer within {timeout_s:g} s; it may still take effect") from None
        finally:
            del self._open[command_id]
        if done.error is not None:
            raise RefusedError(done.error)
        return done.result
