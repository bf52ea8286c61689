"""Bandwidth of each KV transport between two processes, for 1 to 64 MiB a transfer.

Usage: python -m tests.benchmarks.bench_transport [--transports shm gloo] [--device cpu] [--rounds 10]
       [--block-kib 256] [--layers 16] [--chunk-kib 1024] [--slots 4]
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from llumnix.engine.transport import (
    Endpoint,
    KVBlocks,
    Outcome,
    OutcomeKind,
    Transfer,
    TransportSettings,
    open_endpoint,
)

_SIZES_MIB = (1, 4, 16, 64)
_WAIT_S = 60.0


def main() -> None:
    arguments = _arguments()
    print(f"{'transport':<10} {'MiB':>4} {'GiB/s median':>13} {'best':>7} {'ms median':>10}")
    for transport in arguments.transports:
        _measure(transport, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--transports", nargs="+", default=["shm", "gloo"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--block-kib", type=int, default=256, help="bytes of one block over all layers")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--chunk-kib", type=int, default=1024)
    parser.add_argument("--slots", type=int, default=4)
    return parser.parse_args()


def _measure(transport: str, arguments: argparse.Namespace) -> None:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    peer = context.Process(target=_receive_all, args=(theirs, transport, arguments), daemon=True)
    peer.start()
    ends: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    endpoint = _endpoint(transport, arguments)
    channel = endpoint.connect(pipe.recv())
    for size_mib in _SIZES_MIB:
        num_blocks = (size_mib << 10) // arguments.block_kib
        block_ids = list(range(0, 2 * num_blocks, 2))  # never neighbours
        times = []
        for n in range(arguments.rounds + 1):
            name = f"{size_mib}/{n}"
            pipe.send((name, block_ids))
            pipe.recv()
            started = time.perf_counter()
            channel.send(name, block_ids, lambda _, outcome: ends.put(outcome))
            outcome = ends.get(timeout=_WAIT_S)
            times.append(time.perf_counter() - started)
            if outcome.kind is not OutcomeKind.DONE:
                raise SystemExit(f"{transport}: {outcome.reason}")
        del times[0]  # makes the connection, touches the staging
        median, best = statistics.median(times), min(times)
        gib = size_mib / 1024
        print(
            f"{transport:<10} {size_mib:>4} {gib / median:>13.2f} {gib / best:>7.2f} {median * 1e3:>10.2f}",
            flush=True,
        )
    pipe.send(None)
    peer.join(_WAIT_S)
    endpoint.close()


def _endpoint(transport: Any, arguments: argparse.Namespace) -> Endpoint:
    num_blocks = 2 * (max(_SIZES_MIB) << 10) // arguments.block_kib
    row_bytes = (arguments.block_kib << 10) // arguments.layers
    layers = [
        torch.ones(num_blocks, row_bytes, dtype=torch.uint8, device=arguments.device)
        for _ in range(arguments.layers)
    ]
    settings = TransportSettings(chunk_bytes=arguments.chunk_kib << 10, num_slots=arguments.slots)
    return open_endpoint(transport, KVBlocks(layers, num_blocks), settings)


def _receive_all(pipe: Connection, transport: str, arguments: argparse.Namespace) -> None:
    endpoint = _endpoint(transport, arguments)
    pipe.send(endpoint.address)

    def ended(transfer: Transfer, outcome: Outcome) -> None:
        if outcome.kind is not OutcomeKind.DONE:
            print(f"{transfer.transfer_id}: {outcome.reason}")

    while (order := pipe.recv()) is not None:
        endpoint.receive(*order, ended)
        pipe.send(None)
    endpoint.close()


if __name__ == "__main__":
    main()
