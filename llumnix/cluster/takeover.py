"""From one llumnixd to the next: what may go on, what must end, and how to end it without a scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import ray

from llumnix.cluster import ledger as ledgers
from llumnix.cluster.actors import end_actors, ended, instance_actor_name, named_actors
from llumnix.cluster.control_socket import ControlSocket
from llumnix.cluster.ledger import Ledger
from llumnix.cluster.ray_node import RayNode
from llumnix.config import Config
from llumnix.endpoints import make_endpoints
from llumnix.wire import ApiServerUp, StopServing, ToManager

_ABORT_S = 5.0


async def take_over(config: Config, node: RayNode, record: Callable[[str, str, str, str], None]) -> Ledger:
    """The ledger of what runs and goes on, or that of a new cluster; whatever does not go on is ended.

    Its requests may finish first, for http.drain_timeout_s.
    """
    ledger = ledgers.read(config.cluster.state_dir)
    running = set(named_actors())
    reason = ledgers.why_not_adoptable(ledger, config, node.run_id)
    if ledger is not None and reason is None:
        await end_actors(running - _names(ledger))
        if running:
            record("cluster.adopted", "info", "cluster", "llumnixd took over what a former one left running")
        return ledger
    if running:
        message = f"what a former llumnixd left running is ended, as it cannot be taken over: {reason}"
        record("cluster.not_adopted", "warning", "cluster", message)
        if ledger is not None and ledger.run_id == node.run_id:
            await drain(ledger, config.http.drain_timeout_s)
    await end_actors(running)
    next_uid = ledger.next_uid if ledger is not None else 1
    return ledgers.new_ledger(config, node.run_id, make_endpoints(config, node.temp_dir), next_uid)


async def drain(ledger: Ledger, drain_s: float) -> None:
    """Have all API servers finish what runs and end, where no scheduler is left to tell them so."""
    socket = ControlSocket(ledger.endpoints)

    def answer(message: ToManager) -> None:
        if isinstance(message, ApiServerUp):
            socket.tell_api_server(message.index, StopServing(drain_s))

    running = set(named_actors())
    ends = [
        asyncio.create_task(ended(ray.get_actor(known.actor).wait_end.remote()))
        for known in ledger.api_servers
        if known.actor in running
    ]
    reading = asyncio.create_task(socket.run(answer))
    try:
        if ends:
            await asyncio.wait(ends, timeout=drain_s + _ABORT_S)
    finally:
        for task in (reading, *ends):
            task.cancel()
        await asyncio.gather(reading, *ends, return_exceptions=True)
        socket.close()


def _names(ledger: Ledger) -> set[str]:
    instances = {instance_actor_name(i.uid) for i in ledger.instances if i.engine is not None}
    return instances | {server.actor for server in ledger.api_servers}
