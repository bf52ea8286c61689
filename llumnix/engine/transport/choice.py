"""Which transport a pair of instances uses, and why; and the making of it by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from llumnix.engine.transport.base import Endpoint, TransportError, TransportSettings
from llumnix.engine.transport.blocks import KVBlocks
from llumnix.engine.transport.node import host_id

TransportName = Literal["gloo", "shm", "nccl", "cuda_ipc"]
Backend = Literal["auto", "gloo", "shm", "nccl", "cuda_ipc"]


class SideFacts(msgspec.Struct, frozen=True):
    """What the choice needs to know of one side; sent to peers."""

    host_id: str
    device: Literal["cpu", "cuda"]
    gpu_id: str = ""
    """The GPU's own identity, the same for every process that uses it; empty on CPU."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A transport and the reason, for the log and the admin API."""

    transport: TransportName
    reason: str


def choose(backend: Backend, source: SideFacts, target: SideFacts) -> Choice:
    """The configured transport, or for "auto" the fastest that works; raises TransportError if none does."""
    if source.device != target.device:
        raise TransportError(
            f"KV blocks on {source.device} cannot move to an instance whose KV blocks are on {target.device}."
        )
    if backend == "auto":
        return _fastest(source, target)
    if (why_not := _obstacle(backend, source, target)) is not None:
        raise TransportError(f'migration.backend = "{backend}" does not work for this pair: {why_not}.')
    return Choice(backend, f'migration.backend = "{backend}"')


def local_facts(blocks: KVBlocks) -> SideFacts:
    """This process's side."""
    if blocks.device.type == "cpu":
        return SideFacts(host_id(), "cpu")
    import torch

    return SideFacts(host_id(), "cuda", str(torch.cuda.get_device_properties(blocks.device).uuid))


def default_settings(transport: TransportName, host: str) -> TransportSettings:
    """Chunks large enough for the way they go, and small enough that a copy of one is short."""
    if transport in ("nccl", "cuda_ipc"):
        return TransportSettings(host=host, chunk_bytes=16 << 20, num_slots=2)
    return TransportSettings(host=host)


def open_endpoint(transport: TransportName, blocks: KVBlocks, settings: TransportSettings) -> Endpoint:
    """Imports the transport and starts its endpoint; raises TransportError if it cannot work here."""
    from llumnix.engine.transport.endpoint import BlockEndpoint
    from llumnix.engine.transport.plane import PlaneSource

    needed = "cuda" if transport in ("nccl", "cuda_ipc") else "cpu"
    if blocks.device.type != needed:
        raise TransportError(f"{transport} moves KV blocks on {needed}, and these are on {blocks.device}.")
    planes: PlaneSource
    match transport:
        case "shm":
            from llumnix.engine.transport.shm import ShmPlanes

            planes = ShmPlanes()
        case "gloo":
            from llumnix.engine.transport.gloo import GlooPlanes

            planes = GlooPlanes(settings.host)
        case "nccl":
            from llumnix.engine.transport.nccl import NcclPlanes

            planes = NcclPlanes.on_gpu(blocks.device)
        case "cuda_ipc":
            from llumnix.engine.transport.cuda_ipc import CudaIpcPlanes

            planes = CudaIpcPlanes.on_gpu(blocks.device)
    return BlockEndpoint(transport, blocks, settings, planes)


def _fastest(source: SideFacts, target: SideFacts) -> Choice:
    same_node = source.host_id == target.host_id
    if source.device == "cpu":
        if same_node:
            return Choice("shm", "auto: both instances are on one node and keep KV blocks in its memory")
        return Choice("gloo", "auto: the instances are on two nodes and keep KV blocks in CPU memory")
    if same_node and source.gpu_id == target.gpu_id:
        return Choice("cuda_ipc", "auto: both instances use one GPU")
    return Choice("nccl", "auto: the instances use two GPUs")


def _obstacle(transport: TransportName, source: SideFacts, target: SideFacts) -> str | None:
    same_node = source.host_id == target.host_id
    needed = "cuda" if transport in ("nccl", "cuda_ipc") else "cpu"
    if source.device != needed:
        return f"{transport} moves KV blocks on {needed}, and theirs are on {source.device}"
    if transport in ("shm", "cuda_ipc") and not same_node:
        return f"{transport} works inside a node, and they are on two"
    if transport == "nccl" and same_node and source.gpu_id == target.gpu_id:
        return "NCCL takes no two ranks on one GPU; cuda_ipc does"
    return None
