"""Tensor parallelism: every rank's state and blocks go to the same rank of the target."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llumnix.engine.migration.state import WorkerState
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
