"""Two engines exchange requests only if nothing that matters differs, and say what does."""

from __future__ import annotations

import msgspec
import pytest
import torch

from llumnix.engine.migration.fingerprint import Fingerprint
from llumnix.engine.migration.state import decode, encode
from tests.engine.migration.conftest import PairBuilder
from tests.engine.migration.lab import Lab


def test_engines_of_one_configuration_agree(labs: tuple[Lab, Lab], async_labs: tuple[Lab, Lab]) -> None:
    mine, theirs = (lab.port.fingerprint() for lab in labs)
    assert mine.difference(theirs) is None
    assert mine.difference(async_labs[0].port.fingerprint()) is None
    assert decode(encode(mine), Fingerprint) == mine
    assert (mine.device, mine.model_runner, mine.dtype, mine.kv_layout) == ("cpu", "v1", "float32", "LBHNC")
    assert mine.attention == "CPU_ATTN"
    assert mine.kv_format == "4 x float32[2, 32, 128]"


def test_the_first_difference_is_named_with_both_values(labs: tuple[Lab, Lab]) -> None:
    mine = labs[0].port.fingerprint()
    for name in Fingerprint.__struct_fields__:
        changed = 7 if isinstance(getattr(mine, name), int) else "other"
        theirs = msgspec.structs.replace(mine, **{name: changed})
        difference = mine.difference(theirs)
        assert difference == f"{name.replace('_', ' ')} differs: {getattr(mine, name)} here, {changed} there"


def test_engines_without_prefix_cache_agree_with_each_other_only(
    labs: tuple[Lab, Lab], build_pair: PairBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a process that never had an engine with one: vLLM has drawn no first hash there.
    monkeypatch.delattr("vllm.v1.core.kv_cache_utils.NONE_HASH")
    mine, theirs = (lab.port.fingerprint() for lab in build_pair(enable_prefix_caching=False))
    monkeypatch.undo()
    assert mine.difference(theirs) is None
    assert str(mine.difference(labs[0].port.fingerprint())).startswith("block hash differs: off here")


def test_other_weights_of_the_same_shape_differ(labs: tuple[Lab, Lab]) -> None:
    lab = labs[0]
    before = lab.port.fingerprint()
    runner = lab.engine.model_executor.driver_worker.worker.model_runner
    weight = next(p for p in runner.get_model().parameters() if p.dim() == 1 and p.numel())
    with torch.no_grad():
        weight[0] += 1
    changed = lab.port.fingerprint()
    with torch.no_grad():
        weight[0] -= 1
    assert str(before.difference(changed)).startswith("weights differs")
    assert before.difference(lab.port.fingerprint()) is None


def test_kv_views_are_the_engine_s_own_memory_by_block(labs: tuple[Lab, Lab]) -> None:
    lab = labs[0]
    views = lab.port.kv_views()
    runner = lab.engine.model_executor.driver_worker.worker.model_runner
    num_blocks = lab.engine.scheduler.kv_cache_manager.block_pool.num_gpu_blocks
    assert len(views) == 4
    assert all(view.shape[0] == num_blocks for view in views)
    assert [v.data_ptr() for v in views] == [kv.data_ptr() for kv in runner.kv_caches]
