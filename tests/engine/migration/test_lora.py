"""A request with a LoRA adapter takes it along."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest
import torch
from safetensors.torch import save_file

from llumnix.engine import tiny_model
from llumnix.errors import RefusedError
from tests.engine.migration.lab import Lab, LoRARequest, prompt, sampling
from tests.engine.migration.move import Move
from tests.engine.migration.test_exact import check_same

RANK = 8


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> LoRARequest:
    """An adapter for the tiny model's first layer that changes its answers."""
    directory = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(5)
    name = "base_model.model.model.layers.0.self_attn.o_proj"
    width = tiny_model.HIDDEN_SIZE
    save_file(
        {
            f"{name}.lora_A.weight": torch.randn(RANK, width),
            f"{name}.lora_B.weight": torch.randn(width, RANK),
        },
        directory / "adapter_model.safetensors",
    )
    settings = {
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["o_proj"],
        "peft_type": "LORA",
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return LoRARequest("tilt", 1, str(directory))


@pytest.fixture(scope="module")
def lora_labs(build_pair: Callable[..., tuple[Lab, Lab]]) -> tuple[Lab, Lab]:
    return build_pair(enable_lora=True, max_lora_rank=RANK)


def test_its_adapter_moves_with_a_request(lora_labs: tuple[Lab, Lab], adapter: LoRARequest) -> None:
    source, target = lora_labs
    tokens, params = prompt(70), sampling(presence_penalty=0.5)
    plain = source.submit("plain", tokens, params)
    source.run("plain")
    reference = source.submit("unmoved", tokens, params, lora_request=adapter)
    source.run("unmoved")
    assert reference.tokens != plain.tokens
    # With an adapter too: in one batch with it, vLLM on CPU lets it change requests that have none.
    neighbour = target.submit("neighbour", tokens, params, lora_request=adapter)
    result = source.submit("a", tokens, params, lora_request=adapter)
    for _ in range(6):
        source.step()
        target.step()
    assert Move(source, target, "a", "a-1").run()
    target.run("a-1", "neighbour")
    check_same(result, reference)
    check_same(neighbour, reference)
    for lab in lora_labs:
        lab.idle()
        assert lab.port.check_integrity() == []


def test_an_engine_without_lora_refuses(
    lora_labs: tuple[Lab, Lab], labs: tuple[Lab, Lab], adapter: LoRARequest
) -> None:
    source, target = lora_labs[0], labs[0]
    difference = source.port.fingerprint().difference(target.port.fingerprint())
    assert difference == "lora differs: rank 8, torch.float32 here, off there"
    source.submit("b", prompt(40), sampling(), lora_request=adapter)
    source.step()
    with pytest.raises(RefusedError, match="runs without LoRA"):
        Move(source, target, "b", "b-1").prepare()
    source.run("b")


def test_an_adapter_that_cannot_be_loaded_refuses_and_the_engine_lives(
    lora_labs: tuple[Lab, Lab], adapter: LoRARequest
) -> None:
    """In a step it would end the engine; an adapter's files may be gone, or be on other machines only."""
    source, target = lora_labs
    source.submit("c", prompt(40), sampling(), lora_request=adapter)
    source.step()
    info = source.port.source.identity("c")
    gone = LoRARequest("gone", 2, "/no/such/adapter")
    info = msgspec.structs.replace(info, request=msgspec.structs.replace(info.request, lora_request=gone))
    with pytest.raises(RefusedError, match="the target cannot load the adapter 'gone'"):
        target.port.target.reserve(info, "c-1")
    with pytest.raises(RefusedError, match="the target cannot load the adapter 'gone'"):
        target.port.target.open(info, "c-1")
    assert target.port.target.reservations() == []
    assert target.port.check_integrity() == []
    source.run("c")
