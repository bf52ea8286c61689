"""Engine-wide calls: every one ends, and what must last is told to the manager."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from vllm.lora.request import LoRARequest
from vllm.v1.engine import UtilityOutput, UtilityResult

from llumnix.core.events import DispatchEntry
from llumnix.frontend.adapters import AdapterTable
from llumnix.frontend.engine_calls import EngineCalls
from llumnix.frontend.membership import Membership
from llumnix.frontend.refusals import ServiceUnavailable
from llumnix.wire import StateOp, Table, TableEntry

VERSION = 3


class Calls(EngineCalls):
    """Engine-wide calls to instances #1 and #2, which answer when a test says so."""

    def __init__(self, num_instances: int = 2) -> None:
        self.membership = membership = Membership()
        uids = range(1, num_instances + 1)
        membership.apply(
            Table(VERSION, tuple(TableEntry(DispatchEntry(uid, f"i{uid}", True), b"") for uid in uids))
        )
        for uid in uids:
            membership.joined(uid)
        self.sent: list[tuple[int, Any]] = []
        self.reachable = True
        super().__init__(0, membership, self._take)
        self.ops: list[StateOp] = []
        self.on_state_op = self.ops.append

    def _take(self, uid: int, call: tuple[Any, ...]) -> bool:
        self.sent.append((uid, call))
        return self.reachable

    def die(self, uid: int) -> None:
        self.membership.lost(uid)
        self.instance_lost(uid, f"i{uid}", "killed")

    def reply(self, place: int, result: Any = None, failure: str | None = None) -> None:
        call_id = self.sent[place][1][1]
        self.answer(UtilityOutput(call_id, failure, None if failure else UtilityResult(result)))


async def begun(calls: Calls, method: str, *args: Any) -> asyncio.Task[Any]:
    task = asyncio.create_task(calls.as_one(method, args))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_a_call_reaches_all_and_its_state_is_kept() -> None:
    calls = Calls()
    task = await begun(calls, "sleep", 1)
    assert [(uid, call[2:]) for uid, call in calls.sent] == [(1, ("sleep", (1,))), (2, ("sleep", (1,)))]
    calls.reply(1, "second")
    assert not task.done() and calls.ops == []
    calls.reply(0, "first")
    assert await task == "first"
    [op] = calls.ops
    assert (op.table_version, op.key) == (VERSION, "sleep") and op.call is not None


async def test_lists_of_workers_are_joined_and_some_calls_need_one_engine_only() -> None:
    calls = Calls()
    task = await begun(calls, "collective_rpc", "name")
    calls.reply(0, ["a"])
    calls.reply(1, ["b"])
    assert await task == ["a", "b"]
    task = await begun(calls, "get_supported_tasks")
    assert len(calls.sent) == 3
    calls.reply(2, ("generate",))
    assert await task == ("generate",)
    assert calls.ops == []


async def test_a_call_fails_with_its_engine() -> None:
    calls = Calls()
    task = await begun(calls, "sleep", 1)
    calls.reply(0)
    calls.instance_lost(2, "i2", "killed")
    with pytest.raises(RuntimeError, match=r"instance i2 is gone \(killed\)"):
        await task
    task = await begun(calls, "sleep", 1)
    calls.reply(2, failure="no")
    calls.reply(3)
    with pytest.raises(RuntimeError, match="no"):
        await task
    calls.reachable = False
    with pytest.raises(RuntimeError, match="instance i1 cannot be reached"):
        await calls.as_one("sleep", (1,))
    with pytest.raises(ServiceUnavailable):
        await Calls(num_instances=0).as_one("sleep", (1,))
    assert calls.ops == []


async def test_an_instance_that_dies_during_a_call_is_left_out() -> None:
    calls = Calls()
    task = await begun(calls, "sleep", 1)
    calls.die(1)
    assert not task.done()
    calls.reply(1, "second")
    assert await task == "second"
    assert [op.key for op in calls.ops] == ["sleep"]
    calls = Calls()
    task = await begun(calls, "sleep", 1)
    calls.die(1)
    calls.reply(1, failure="no")
    with pytest.raises(RuntimeError, match="no"):
        await task
    assert calls.ops == []


async def test_a_call_fails_if_no_instance_outlives_it() -> None:
    calls = Calls()
    task = await begun(calls, "sleep", 1)
    calls.die(1)
    calls.die(2)
    with pytest.raises(RuntimeError, match=r"instance i1 is gone \(killed\)"):
        await task
    assert calls.ops == []


async def test_an_adapter_is_forgotten_when_vllm_unloads_it() -> None:
    calls = Calls()
    lora = LoRARequest("fr", 7, "/adapters/fr")
    task = await begun(calls, "add_lora", lora)
    calls.reply(0, True)
    calls.reply(1, True)
    assert await task is True
    table = AdapterTable({}, calls.adapter_unloaded)
    table["fr"] = lora
    assert [op.key for op in calls.ops] == ["lora:7"]
    del table["fr"]
    assert "fr" not in table
    assert [(op.key, op.call) for op in calls.ops[1:]] == [("lora:7", None), ("pin:7", None)]
    with pytest.raises(KeyError):
        del table["fr"]
    assert len(calls.ops) == 3
