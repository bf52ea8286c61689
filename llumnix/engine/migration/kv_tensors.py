"""A rank's KV cache as plain tensors, and what two ranks must have in common to exchange blocks."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from llumnix.engine.migration.state import WorkerDescription

_SAMPLE = 8


def block_views(model_runner: Any) -> list[torch.Tensor]:
    """One view per layer, in layer order, whose dimension 0 is the scheduler's block id.

    Blocks are not contiguous in every layout: go by the view's strides. A kernel may use smaller blocks than
    the scheduler; its dimension 0 is then split, without a copy.
    """
    num_blocks = model_runner.kv_cache_config.num_blocks
    views: list[torch.Tensor] = []
    seen: set[int] = set()
    for tensor in model_runner.kv_caches:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"a KV cache of {type(tensor).__name__} instead of one tensor cannot be moved")
        if tensor.data_ptr() in seen:  # a layer that shares another's cache
            continue
        seen.add(tensor.data_ptr())
        views.append(tensor if tensor.shape[0] == num_blocks else tensor.unflatten(0, (num_blocks, -1)))
    return views


def describe_worker(worker: Any) -> WorkerDescription:
    """The rank's part of the fingerprint."""
    runner = worker.model_runner
    backends = {group.backend.get_name() for groups in runner.attn_groups for group in groups}
    return WorkerDescription(
        rank=worker.rank,
        runner="v2" if worker.vllm_config.use_v2_model_runner else "v1",
        device=runner.device.type,
        attention=sorted(backends),
        kv_format=_kv_format(block_views(runner)),
        weights=_weights_digest(runner.get_model()),
    )


def _kv_format(views: list[torch.Tensor]) -> str:
    """Shape of a block in each layer, runs of equal layers taken together."""
    formats = [f"{view.dtype}{list(view.shape[1:])}".removeprefix("torch.") for view in views]
    kinds = sorted(set(formats), key=formats.index)
    return ", ".join(f"{formats.count(kind)} x {kind}" for kind in kinds)


def _weights_digest(model: torch.nn.Module) -> str:
    """Tells models apart by the names, shapes and first values of their weights: fast at any size."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {list(weight.shape)} {weight.dtype}\n".encode())
        if weight.numel() and weight.dim():
            corner = weight.detach()[tuple(slice(0, min(size, _SAMPLE)) for size in weight.shape)]
            digest.update(corner.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
