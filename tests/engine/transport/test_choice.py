"""Which transport a pair uses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from llumnix.engine.transport import (
    KVBlocks,
    SideFacts,
    TransportError,
    TransportSettings,
    choose,
    default_settings,
    local_facts,
    open_endpoint,
)
from tests.engine.transport.caches import separate

CPU_1, CPU_2 = SideFacts("one", "cpu"), SideFacts("two", "cpu")
GPU_1A, GPU_1B = SideFacts("one", "cuda", "A"), SideFacts("one", "cuda", "B")
GPU_2A = SideFacts("two", "cuda", "A")


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (CPU_1, CPU_1, "shm"),
        (CPU_1, CPU_2, "gloo"),
        (GPU_1A, GPU_1A, "cuda_ipc"),
        (GPU_1A, GPU_1B, "nccl"),
        (GPU_1A, GPU_2A, "nccl"),
    ],
)
def test_auto_takes_the_fastest_that_works(source: SideFacts, target: SideFacts, expected: str) -> None:
    choice = choose("auto", source, target)
    assert choice.transport == expected
    assert choice.reason.startswith("auto: ")
    assert choose(choice.transport, source, target).reason == f'migration.backend = "{expected}"'


@pytest.mark.parametrize(
    ("backend", "source", "target"),
    [
        ("shm", CPU_1, CPU_2),
        ("cuda_ipc", GPU_1A, GPU_2A),
        ("nccl", GPU_1A, GPU_1A),
        ("nccl", CPU_1, CPU_2),
        ("gloo", GPU_1A, GPU_1B),
        ("auto", CPU_1, GPU_1A),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(
    backend: str, source: SideFacts, target: SideFacts
) -> None:
    with pytest.raises(TransportError, match=r"cannot move|does not work for this pair"):
        choose(backend, source, target)  # type: ignore[arg-type]


def test_this_machine_s_cpu_blocks_go_through_shared_memory() -> None:
    facts = local_facts(KVBlocks(separate(2, torch.float32, "cpu"), 2))
    assert choose("auto", facts, facts).transport == "shm"
    with pytest.raises(TransportError, match="nccl moves KV blocks on cuda"):
        open_endpoint("nccl", KVBlocks(separate(2, torch.float32, "cpu"), 2), default_settings("nccl", ""))


@pytest.mark.parametrize("chunk_bytes", [0, 4095, 5000])
def test_chunks_that_are_no_pages_are_refused(chunk_bytes: int) -> None:
    with pytest.raises(TransportError, match="multiple of 4096"):
        TransportSettings(chunk_bytes=chunk_bytes)


def test_a_transport_is_imported_only_when_it_is_opened() -> None:
    script = (
        "import sys, llumnix.engine.transport\n"
        "names = [f'llumnix.engine.transport.{n}' for n in ('shm', 'gloo', 'nccl', 'cuda_ipc', 'endpoint')]\n"
        "loaded = [n for n in (*names, 'vllm', 'ray') if n in sys.modules]\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
