"""The llumlet's sending thread, on real sockets."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.serial_utils import MsgpackDecoder

from llumnix.core.load import InstanceReport
from llumnix.engine.loop_clock import LoopClock
from llumnix.engine.outbox import DropApiServer, LastWords, Outbox
from llumnix.sockets import open_socket
from llumnix.wire import ipc_endpoints, origin_of

REPORT = InstanceReport(
    uid=9, seq=0, block_size=16, total_blocks=10, used_blocks=0, max_running=8, running=0, waiting=0
)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Any, list[zmq.Socket[bytes]]]]:
    """An instance of two API servers, and the sockets of these."""
    endpoints = ipc_endpoints(tmp_path, 2)
    clock = LoopClock()
    clock.turned_at -= 1_000  # a loop that hangs: its last report is not told again
    core = SimpleNamespace(
        uid=9,
        endpoints=endpoints,
        clock=clock,
        health=SimpleNamespace(heartbeat_timeout_s=10, step_timeout_s=300),
        output_queue=queue.Queue(),
        on_engine_thread=lambda call: None,
        tick=None,
    )
    with zmq.Context() as context:
        sockets = [
            open_socket(context, zmq.PULL, server.output, bind=True, curve=None)
            for server in endpoints.api_servers
        ]
        for socket in sockets:
            socket.setsockopt(zmq.RCVTIMEO, 10_000)
        thread = threading.Thread(target=Outbox(core).run, daemon=True)  # type: ignore[arg-type]
        thread.start()
        yield core, sockets
        core.output_queue.put(LastWords("the test is over"))
        thread.join(10)
        for socket in sockets:
            socket.close()


def test_messages_to_each_api_server_are_numbered_and_begin_anew_with_a_new_process(
    servers: tuple[Any, list[zmq.Socket[bytes]]],
) -> None:
    core, (one, two) = servers
    for item in ((0, EngineCoreOutputs(timestamp=1.5)), REPORT, (1, EngineCoreOutputs(timestamp=2.5))):
        core.output_queue.put(item)
    tag, sender, *payload = one.recv_multipart()
    assert (tag, origin_of(sender)) == (b"O", (9, 0))
    assert MsgpackDecoder(EngineCoreOutputs).decode(payload).timestamp == 1.5
    tag, sender, _ = one.recv_multipart()
    assert (tag, origin_of(sender)) == (b"R", (9, 1))
    assert [origin_of(two.recv_multipart()[1]) for _ in range(2)] == [(9, 0), (9, 1)]
    core.output_queue.put(DropApiServer(0))
    core.output_queue.put((0, EngineCoreOutputs(timestamp=3.5)))
    assert origin_of(one.recv_multipart()[1]) == (9, 0)
    core.output_queue.put(LastWords("no more"))
    tag, sender, reason = two.recv_multipart()
    assert (tag, origin_of(sender), reason) == (b"D", (9, 2), b"no more")
