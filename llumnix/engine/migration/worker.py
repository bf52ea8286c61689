"""The worker's half of a migration: vLLM mixes this class into its worker (`worker_extension_cls`).

Called by collective_rpc on every rank, between two steps. The names start with `llumnix_`, as vLLM refuses
an extension with a name that its worker has too.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from llumnix.engine.migration import runner_v1, runner_v2
from llumnix.engine.migration.kv_tensors import block_views, describe_worker
from llumnix.engine.migration.state import WorkerState

EXTENSION = "llumnix.engine.migration.worker.MigrationWorker"
"""For vLLM's argument `worker_extension_cls`."""
CPU_WORKER = "llumnix.engine.migration.cpu_worker.CPUWorker"
"""For vLLM's argument `worker_cls` on CPU."""


class MigrationWorker:
    """Mixed into vllm.v1.worker.gpu_worker.Worker or a subclass of it; has a state only once its transports
    are opened, which they are where the workers are processes of their own."""

    def llumnix_describe(self: Any) -> bytes:
        """A WorkerDescription as msgpack; reads a few values of every weight."""
        return msgspec.msgpack.encode(describe_worker(self))

    def llumnix_export_request(self: Any, request_id: str) -> bytes:
        """The WorkerState of a request that the runner knows; raises KeyError for another."""
        return msgspec.msgpack.encode(_runner(self).export_request(self.model_runner, request_id))

    def llumnix_import_request(self: Any, request: Any, states: list[bytes]) -> None:
        """Have the runner know a request as if it had been preempted here; states are in rank order."""
        state = msgspec.msgpack.decode(states[self.rank], type=WorkerState)
        _runner(self).import_request(self.model_runner, request, state)

    def llumnix_replayed_state(self: Any, seed: int | None, num_tokens: int) -> bytes:
        """The WorkerState that a request would have which sampled `num_tokens` tokens here."""
        return msgspec.msgpack.encode(_runner(self).replayed_state(self.model_runner, seed, num_tokens))

    def llumnix_forget_request(self: Any, request_id: str) -> None:
        """Undo llumnix_import_request for a request that the scheduler was never told of."""
        _runner(self).forget_request(self.model_runner, request_id)

    def llumnix_kv_views(self: Any) -> list[torch.Tensor]:
        """This rank's KV cache, one view per layer, dimension 0 the scheduler's block id. In-process only."""
        return block_views(self.model_runner)

    def llumnix_open_transport(self: Any, options: bytes) -> bytes:
        """Open this rank's transports (RankTransportOptions); their address."""
        from llumnix.engine.migration.rank_transport import RankTransport, RankTransportOptions

        decoded = msgspec.msgpack.decode(options, type=RankTransportOptions)
        self.llumnix_transport = RankTransport(self.rank, self.llumnix_kv_views(), decoded)
        address: bytes = self.llumnix_transport.address
        return address

    def llumnix_transport_orders(self: Any, orders: bytes) -> None:
        """See RankTransport.take; no answer is waited for."""
        self.llumnix_transport.take(orders)


def _runner(worker: Any) -> Any:
    return runner_v2 if worker.vllm_config.use_v2_model_runner else runner_v1
