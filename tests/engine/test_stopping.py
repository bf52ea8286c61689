"""An engine that is told to end says nothing of its requests: their owners resume them elsewhere."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineShutdownState

from llumnix.engine.instance import InstanceCore
from llumnix.engine.loop_clock import LoopClock

REQUEST: Any = SimpleNamespace(request_id="r0@0.0", client_index=0)


@pytest.fixture
def core() -> InstanceCore:
    """The loop's part of an instance, without an engine."""
    core = InstanceCore.__new__(InstanceCore)
    core.clock = LoopClock()
    core.shutdown_state = EngineShutdownState.RUNNING
    core.output_queue = queue.Queue()
    core.taken = {}
    core.closed = []  # type: ignore[attr-defined]
    core.llumlet = SimpleNamespace(close=core.closed.append)  # type: ignore[attr-defined, assignment]
    return core


def test_a_stop_ends_no_request(core: InstanceCore) -> None:
    core.stop()
    core._send_abort_outputs([REQUEST])
    core._handle_client_request(EngineCoreRequestType.ADD, (REQUEST, 0))
    core._handle_client_request(EngineCoreRequestType.UTILITY, (0, 7, "list_loras", ()))
    core.resume(REQUEST, [1, 2])
    assert core.output_queue.empty()
    assert core.taken == {0: 2}
    assert core.closed == ["is being stopped"]  # type: ignore[attr-defined]


def test_a_pause_ends_what_runs_as_in_vllm(core: InstanceCore) -> None:
    core._send_abort_outputs([REQUEST])
    [(server, outputs)] = core.output_queue.queue
    assert server == 0 and [str(o.finish_reason) for o in outputs.outputs] == ["abort"]
