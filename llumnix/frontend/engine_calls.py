"""Engine-wide calls: on all instances, with one answer, and remembered for instances that join later."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from vllm.v1.engine import UtilityOutput
from vllm.v1.serial_utils import MsgpackEncoder

from llumnix.core.events import DispatchEntry
from llumnix.frontend.engine_state import forget_key, persistent_key
from llumnix.frontend.membership import Membership
from llumnix.frontend.refusals import ServiceUnavailable
from llumnix.wire import StateOp

_ONE_ENGINE_IS_ENOUGH = frozenset({"get_supported_tasks", "save_sharded_state"})

Send = Callable[[int, tuple[Any, ...]], bool]
"""Sends (client index, call id, method, args) to an instance; False if there is no way to it."""


class EngineCalls:
    """Utility calls under way; every one ends: by its answer, or with its instance. All on one event loop."""

    def __init__(self, client_index: int, membership: Membership, send: Send) -> None:
        self._client_index = client_index
        self._membership = membership
        self._send = send
        self._encoder = MsgpackEncoder()
        self._futures: dict[int, tuple[int, asyncio.Future[Any]]] = {}
        self.on_state_op: Callable[[StateOp], None] = lambda op: None
        """Called for every call that instances which join later must take on, or need not any more."""

    async def as_one(self, method: str, args: Sequence[Any]) -> Any:
        """The answer as if there were one engine: lists with an item per worker are joined."""
        if method in _ONE_ENGINE_IS_ENOUGH:
            return await self._one(self._instances()[0], method, args)
        results = await self.on_all(method, args)
        if method == "collective_rpc":
            return [worker for workers in results for worker in workers]
        return results[0]

    async def on_all(self, method: str, args: Sequence[Any]) -> list[Any]:
        """The call on every instance; RuntimeError if one fails, ServiceUnavailable if there is none.

        One that is gone meanwhile is left out: what takes its place is told what the others were.
        """
        version, entries = self._membership.version, self._instances()
        calls = (self._one(entry, method, args) for entry in entries)
        results = await asyncio.gather(*calls, return_exceptions=True)
        alive = [r for entry, r in zip(entries, results, strict=True) if self._is_there(entry, r)]
        for result in alive or results:
            if isinstance(result, BaseException):
                raise result
        self._remember(version, method, args)
        return alive

    def _is_there(self, entry: DispatchEntry, result: Any) -> bool:
        """Whether an instance has answered, or lives and has failed to."""
        return not isinstance(result, Exception) or self._membership.is_known(entry.uid)

    def adapter_unloaded(self, lora_int_id: int) -> None:
        """An adapter is known no more. Engines are not told, as in vLLM, where others soon take its place."""
        self._forget(self._membership.version, forget_key("remove_lora", (lora_int_id,)))

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

    def _instances(self) -> list[DispatchEntry]:
        entries = [entry.entry for entry in self._membership.usable()]
        if not entries:
            raise ServiceUnavailable("no instance serves")
        return entries

    async def _one(self, entry: DispatchEntry, method: str, args: Sequence[Any]) -> Any:
        call_id = uuid.uuid1().int >> 64
        future = asyncio.get_running_loop().create_future()
        self._futures[call_id] = (entry.uid, future)
        try:
            if not self._send(entry.uid, (self._client_index, call_id, method, args)):
                raise RuntimeError(f"instance {entry.instance} cannot be reached")
            return await future
        finally:
            self._futures.pop(call_id, None)

    def _remember(self, table_version: int, method: str, args: Sequence[Any]) -> None:
        self._forget(table_version, forget_key(method, args))
        state = persistent_key(method, args)
        if state is not None:
            call = self._encoder.encode((self._client_index, 0, method, args))
            self.on_state_op(StateOp(table_version, state, tuple(bytes(frame) for frame in call)))

    def _forget(self, table_version: int, keys: Sequence[str]) -> None:
        for key in keys:
            self.on_state_op(StateOp(table_version, key, None))
