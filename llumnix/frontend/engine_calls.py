"""Engine-wide calls: on all instances, with one answer, and remembered for instances that join later."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from vllm.v1.engine import UtilityOutput

Send = Callable[[int, tuple[Any, ...]], bool]
"""Sends (client index, call id, method, args) to an instance; False if there is no way to it."""


class EngineCalls:
    """Utility calls under way; every one ends: by its answer, or with its instance. All on one event loop."""

    def __init__(self, client_index: int, send: Send) -> None:
        self._client_index = client_index
        self._send = send
        self._futures: dict[int, tuple[int, asyncio.Future[Any]]] = {}

    async def one(self, uid: int, name: str, method: str, args: Sequence[Any]) -> Any:
        """The call on one instance; RuntimeError if it fails there or the instance is lost."""
        call_id = uuid.uuid1().int >> 64
        future = asyncio.get_running_loop().create_future()
        self._futures[call_id] = (uid, future)
        try:
            if not self._send(uid, (self._client_index, call_id, method, args)):
                raise RuntimeError(f"instance {name} cannot be reached")
            return await future
        finally:
            self._futures.pop(call_id, None)

    def answer(self, output: UtilityOutput) -> None:
        """An instance's answer; one that nobody waits for any more is dropped."""
        _, future = self._futures.get(output.call_id, (0, None))
        if future is None or future.done():
            return
        if output.failure_message is not None:
            future.set_exception(RuntimeError(output.failure_message))
        else:
            future.set_result(None if output.result is None else output.result.result)

    def instance_lost(self, uid: int, name: str, reason: str) -> None:
        """Nobody there will answer."""
        for owner, future in list(self._futures.values()):
            if owner == uid and not future.done():
                future.set_exception(RuntimeError(f"instance {name} is gone ({reason})"))
