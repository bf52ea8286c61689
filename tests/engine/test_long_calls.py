"""An engine-wide call counts as a step of its engine loop, whose time has a limit of its own."""

from __future__ import annotations

import queue
import time
from typing import Any

import pytest
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineShutdownState

from llumnix.core.events import Beat
from llumnix.engine.instance import InstanceCore
from llumnix.engine.loop_clock import LoopClock, LoopWatch


class Core(InstanceCore):
    """The loop's part of an instance, without an engine; its calls look at their own heartbeat."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.shutdown_state = EngineShutdownState.RUNNING
        self.output_queue = queue.Queue()
        self.watch = LoopWatch(1, self.clock)
        self.beat: Beat | None = None

    def _look(self, a: Any = None, b: Any = None, c: Any = None) -> None:
        self.beat = self.watch.beat(time.monotonic() + 60)

    sleep = add_lora = collective_rpc = list_loras = _look

    def fail(self) -> None:
        raise RuntimeError("no")

    def call(self, method: str, *args: Any) -> Beat:
        self._handle_client_request(EngineCoreRequestType.UTILITY, (0, 7, method, args))
        assert self.beat is not None
        return self.beat


@pytest.mark.parametrize(
    ("call", "may_wait"),
    [
        (("sleep", 1), True),
        (("add_lora", None), True),
        (("collective_rpc", "reload_weights"), True),
        (("collective_rpc", "block_loop", None, (1, 2)), False),
        (("collective_rpc", b"a function"), False),
        (("list_loras",), False),
    ],
)
def test_a_call_is_a_step_and_may_wait_where_it_moves_weights(call: tuple[Any, ...], may_wait: bool) -> None:
    core = Core()
    beat = core.call(*call)
    assert beat.step_age_s is not None and beat.step_age_s > 59
    assert beat.may_wait is may_wait
    after = core.watch.beat(time.monotonic())
    assert after.step_age_s is None and not after.may_wait


def test_a_replayed_call_is_one_too_and_one_that_fails_ends() -> None:
    core = Core()
    core.replay("sleep", (1,))
    assert core.beat is not None and core.beat.may_wait
    with pytest.raises(RuntimeError):
        core.replay("fail", ())
    assert core.watch.beat(time.monotonic()).step_age_s is None
