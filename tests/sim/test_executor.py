"""Steps of the simulated executor take the time of the formulas; vLLM's scheduler decides what is in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llumnix.profiles import PROFILES, Chunk, find_profile, save_profile
from tests.sim.engines import EngineCore, build_engine, executor, submit


def step_ms(engine: EngineCore) -> float:
    engine.step()
    return executor(engine).step_ms


def test_prefill_and_decode_take_the_times_of_the_paper() -> None:
    engine = build_engine()
    submit(engine, 1, 1000, 5)
    assert step_ms(engine) == pytest.approx(5.6 + 0.2028 * 1000 + 5.09e-6 * 1000**2)
    assert step_ms(engine) == pytest.approx(41.3 + 0.12 + 0.0009 * 1001)
    assert step_ms(engine) == pytest.approx(41.3 + 0.12 + 0.0009 * 1002)


def test_a_long_prompt_is_prefilled_in_chunks_beside_decodes() -> None:
    engine = build_engine()
    submit(engine, 1, 100, 9)
    engine.step()
    submit(engine, 2, 3000, 5)
    decode = 41.3 + 0.12 + 0.0009 * 101
    # 2,048 tokens a step in all: the decode takes one.
    assert step_ms(engine) == pytest.approx(decode + 0.2028 * 2047 + 5.09e-6 * 2047**2)
    rest = 0.2028 * (3000 - 2047) + 5.09e-6 * (3000**2 - 2047**2)
    assert step_ms(engine) == pytest.approx(decode + 0.0009 + rest)
    assert len(engine.scheduler.requests["2@1.0"].output_token_ids) == 1


def test_a_prompt_in_the_prefix_cache_costs_only_its_rest() -> None:
    engine = build_engine()
    submit(engine, 1, 640, 1)
    engine.step()
    submit(engine, 1, 640, 1)  # the same tokens; the last block is always computed
    assert step_ms(engine) == pytest.approx(5.6 + 0.2028 * 16 + 5.09e-6 * (640**2 - 624**2))


def test_of_two_classes_the_lower_one_is_preempted_the_latest_comer_first() -> None:
    engine = build_engine()
    # 851 blocks: two of 400 leave 51, which their growth and the third request use up.
    earlier, later = submit(engine, 1, 6400, 500), submit(engine, 2, 6400, 500)
    for _ in range(8):
        engine.step()
    urgent = submit(engine, 3, 600, 300, priority=-1)
    preempted: list[str] = []
    for _ in range(400):
        engine.step()
        preempted += sorted(executor(engine).preempted)
    assert preempted == [later]
    assert engine.scheduler.requests[earlier].num_preemptions == 0
    assert urgent not in engine.scheduler.requests  # finished


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_profile_goes_to_a_file_and_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    save_profile(PROFILES[name], path)
    assert find_profile(str(path)) == PROFILES[name]


@pytest.mark.parametrize(
    ("change", "why"),
    [({"num_blocks": 0}, "1 or more"), ({"decode_ms": "x"}, "decode_ms"), ({"speed": 1}, "speed")],
)
def test_a_profile_file_that_is_wrong_is_refused(change: dict[str, object], why: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    save_profile(PROFILES["a10-llama-7b"], path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=why):
        find_profile(str(path))


def test_a_copy_takes_its_fixed_time_and_its_bytes() -> None:
    profile = PROFILES["a10-llama-7b"]
    assert profile.copy_s(0) == pytest.approx(0.028)
    # 1,024 tokens of 512 KiB are half a GiB.
    assert profile.copy_s(64) == pytest.approx(0.028 + 0.5 / 2.2)
    assert profile.step_ms(0, 0, [Chunk(0, 16)]) < profile.step_ms(1, 17, [Chunk(0, 16)])
