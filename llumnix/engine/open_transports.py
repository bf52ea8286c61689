"""Which transports an instance has: by where its KV cache is."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

from llumnix.engine.migration.port import MigrationPort
from llumnix.engine.migration.rank_transport import RankTransportOptions
from llumnix.engine.rank_transports import RankTransports, tell_ranks
from llumnix.engine.simulated.executor import SimulatedExecutor
from llumnix.engine.simulated.timed_transports import TimedTransports
from llumnix.engine.transport import KVBlocks
from llumnix.engine.transport.choice import Backend
from llumnix.engine.transport_set import NoTransports, TransportSet
from llumnix.wire import Endpoints


def open_transports(
    engine: Any, port: MigrationPort, backend: Backend, host: str, endpoints: Endpoints
) -> TransportSet | RankTransports | TimedTransports | NoTransports:
    """In this process, in its workers, or none where workers are on other nodes; `host` is this node's."""
    if isinstance(engine.model_executor, SimulatedExecutor):
        return TimedTransports(engine.model_executor.profile)
    parallel = engine.vllm_config.parallel_config
    one_node = endpoints.curve is None
    if parallel.world_size == 1:
        views = port.kv_views()
        return TransportSet(KVBlocks(views, views[0].shape[0]), backend, host, one_node=one_node)
    if parallel.nnodes > 1 or parallel.distributed_executor_backend != "mp":
        return NoTransports()
    news = f"ipc://{tempfile.gettempdir()}/ranks{engine.uid}"  # of this node; the workers inherit it
    options = RankTransportOptions(backend, host, one_node, news)
    executor = engine.model_executor
    tell = partial(tell_ranks, executor)
    return RankTransports(
        executor.collective_rpc, tell, parallel.world_size, options, engine.on_engine_thread
    )
