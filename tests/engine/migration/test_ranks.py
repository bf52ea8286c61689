"""Tensor parallelism: every rank's state and blocks go to the same rank of the target."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llumnix.engine.migration.rank_transport import RankTransportOptions
from llumnix.engine.migration.state import WorkerState
from llumnix.engine.rank_transports import RankTransports, tell_ranks
from llumnix.engine.transport import OutcomeKind
from tests.engine.migration.conftest import PairBuilder
from tests.engine.migration.lab import Lab, disable_envs_cache, prompt, sampling
from tests.engine.migration.move import Move
from tests.engine.migration.test_exact import check_same

pytestmark = pytest.mark.load


@pytest.fixture(scope="module")
def rank_labs(build_pair: PairBuilder) -> tuple[Lab, Lab]:
    with pytest.MonkeyPatch.context() as environment:
        disable_envs_cache()  # filled by the engines of other tests
        environment.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else it wants a NUMA node for each rank
        return build_pair(
            tensor_parallel_size=2,
            distributed_executor_backend="mp",
            worker_extension_cls="tests.engine.migration.rank_worker.RankWorker",
        )


@pytest.mark.parametrize("parameters", [{}, {"temperature": 1.0, "seed": 7, "top_p": 0.95}])
def test_a_request_moves_rank_to_rank(rank_labs: tuple[Lab, Lab], parameters: dict[str, Any]) -> None:
    source, target = rank_labs
    for lab in rank_labs:
        lab.reset()
    tokens, params = prompt(70), sampling(**parameters)
    reference = source.submit("unmoved", tokens, params)
    source.run("unmoved")
    result = source.submit("a", tokens, params)
    for _ in range(6):
        source.step()
    seen: list[list[bytes]] = []

    def keep(final: Any) -> Any:
        seen.append(final.workers)
        return final

    move = Move(source, target, "a", "a-1", tamper=keep)
    assert move.run()
    target.run("a-1")
    check_same(result, reference)
    assert move.num_sent_blocks == 3
    states = [msgspec.msgpack.decode(state, type=WorkerState) for state in seen[0]]
    assert [state.generator is not None for state in states] == ["seed" in parameters] * 2


def test_fingerprints_tell_of_every_rank(rank_labs: tuple[Lab, Lab], labs: tuple[Lab, Lab]) -> None:
    mine = rank_labs[0].port.fingerprint()
    assert mine.difference(rank_labs[1].port.fingerprint()) is None
    assert mine.tensor_parallel == 2
    assert mine.kv_format == "4 x float32[1, 32, 128]"
    assert mine.difference(labs[0].port.fingerprint()) is not None
    with pytest.raises(ValueError, match="with the mp executor the KV cache is not in this process"):
        rank_labs[0].port.kv_views()


def test_the_engine_thread_waits_for_no_copy_of_a_rank(rank_labs: tuple[Lab, Lab], tmp_path: Path) -> None:
    """Copies are asked for while the ranks are busy with a call that ends only once that has been done."""
    engine_thread = ThreadPoolExecutor(1)
    source, target = (
        RankTransports(
            lab.engine.model_executor.collective_rpc,
            partial(tell_ranks, lab.engine.model_executor),
            2,
            RankTransportOptions("auto", "127.0.0.1", True, f"ipc://{tmp_path}/ranks{n}"),
            engine_thread.submit,
        )
        for n, lab in enumerate(rank_labs)
    )
    executors = [lab.engine.model_executor for lab in rank_labs]
    blocks = list(range(1, 13))
    before = executors[0].collective_rpc("llumnix_test_read", args=(blocks,))
    asked = tmp_path / "asked"
    busy = [
        e.collective_rpc("llumnix_test_stay_until", args=(str(asked), 60), non_block=True) for e in executors
    ]
    outcomes: queue.Queue[OutcomeKind] = queue.Queue()

    def ask() -> None:
        for block in blocks:
            name = str(block)
            source.send(target.address, name, [block], lambda _, end: outcomes.put(end.kind))
            target.receive(source.address, name, [block], lambda _, end: outcomes.put(end.kind))
        source.cancel(source.send(target.address, "cancelled", [1], lambda _, end: outcomes.put(end.kind)))
        target.peer_gone(b"\x92\xc4\x00\xc4\x00")  # of two ranks, unknown

    engine_thread.submit(ask).result()
    asked.touch()
    ends = [outcomes.get(timeout=60) for _ in range(2 * len(blocks) + 1)]
    assert sorted(end.value for end in ends) == ["cancelled"] + ["done"] * 2 * len(blocks)
    # vLLM's own answers still come in their turn.
    assert [future.result() for future in busy] == [[True, True]] * 2
    assert executors[1].collective_rpc("llumnix_test_read", args=(blocks,)) == before
