"""The built-in model: the same files everywhere, a tokenizer for any text, a chat template that renders."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from llumnix.engine import tiny_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(model_dir)


def file_hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_another_process_builds_the_same_bytes_and_loads_no_torch(model_dir: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llumnix.engine import tiny_model\n"
        "tiny_model.build(Path(sys.argv[1]))\n"
        "print([name for name in ('torch', 'transformers', 'vllm') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    assert done.stdout.strip() == "[]"
    assert file_hashes(tmp_path / "models" / model_dir.name) == file_hashes(model_dir)


def test_second_build_touches_nothing(model_dir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [model_dir, *model_dir.iterdir()]}
    assert tiny_model.build(model_dir.parent.parent) == model_dir
    assert {path: path.stat().st_mtime_ns for path in [model_dir, *model_dir.iterdir()]} == before


def test_builders_side_by_side_make_one_whole_model(model_dir: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        built = set(pool.map(tiny_model.build, [tmp_path] * 4))
    assert built == {tmp_path / "models" / model_dir.name}
    assert file_hashes(built.pop()) == file_hashes(model_dir)
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == [model_dir.name]


def test_what_a_killed_builder_left_is_replaced(model_dir: Path, tmp_path: Path) -> None:
    partial_dir = tmp_path / "models" / ".tiny.partial"
    partial_dir.mkdir(parents=True)
    (partial_dir / "model.safetensors").write_bytes(b"half")
    (partial_dir / "rubbish").write_bytes(b"")
    assert file_hashes(tiny_model.build(tmp_path)) == file_hashes(model_dir)
    assert not partial_dir.exists()


def test_weights_are_those_the_configuration_asks_for(model_dir: Path) -> None:
    weights = load_file(model_dir / "model.safetensors")
    assert sum(weight.numel() for weight in weights.values()) == tiny_model.num_parameters() == 4_000_000
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(model_dir))
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == expected
    assert model.config.max_position_embeddings == 8192


def test_vocabulary_fills_the_embedding_and_ids_agree(model_dir: Path, tokenizer: Any) -> None:
    assert len(tokenizer) == tiny_model.VOCAB_SIZE == max(tokenizer.get_vocab().values()) + 1
    config = json.loads((model_dir / "config.json").read_text())
    assert tokenizer.convert_ids_to_tokens(
        [config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]]
    ) == [tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token]


@given(st.text())
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    token_ids = tokenizer.encode(text)
    assert token_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(token_ids[1:]) == text


@given(st.lists(st.integers(len(tiny_model.SPECIAL_TOKENS), tiny_model.VOCAB_SIZE - 1)))
def test_any_tokens_have_a_text(tokenizer: Any, token_ids: list[int]) -> None:
    # The known way back to bytes: printable bytes stand for themselves, the others follow from 256 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    raw = bytes(byte_of[c] for token in tokenizer.convert_ids_to_tokens(token_ids) for c in token)
    assert tokenizer.decode(token_ids) == raw.decode("utf-8", errors="replace")


def test_english_takes_at_least_two_bytes_per_token(tokenizer: Any) -> None:
    text = "Please explain how the scheduler moves a request from one instance to another."
    assert len(tokenizer.encode(text)) <= len(text) / 2


def test_chat_template_renders_every_role(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
            ],
        },
        {"role": "tool", "content": "sunny"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|begin|><|system|>Be brief.<|end|><|user|>Weather?<|end|>"
        '<|assistant|><tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call><|end|>'
        "<|tool|>sunny<|end|><|assistant|>"
    )


def test_chat_template_shows_the_tools(tokenizer: Any) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tools=[tool], tokenize=False
    )
    assert rendered.startswith("<|begin|><|system|>")
    assert json.dumps(tool) in rendered
    assert rendered.endswith("<|end|><|user|>Hi<|end|>")


def test_chat_template_leaves_a_final_message_open_to_be_continued(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well,"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert rendered == "<|begin|><|user|>Hi<|end|><|assistant|>Well,"


def test_chat_template_refuses_an_unknown_role(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="unknown role narrator"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "Hi"}], tokenize=False)


@torch.inference_mode()
def test_greedy_output_is_no_loop(model_dir: Path, tokenizer: Any) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(model_dir)
    prompt = tokenizer.encode("Once upon a time")
    token_ids = list(prompt)
    for _ in range(32):
        token_ids.append(int(model(torch.tensor([token_ids])).logits[0, -1].argmax()))
    assert len(set(token_ids[len(prompt) :])) > 16
