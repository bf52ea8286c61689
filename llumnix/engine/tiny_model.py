"""The built-in model: a 4M-parameter Llama with random weights, made on the spot, without network or torch.

Its words mean nothing, but it is a complete model: tokenizer, chat template, weights. The same files, to the
bit, come out on every machine, so that instances on different nodes serve one model.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SEED = 20_240_610
NUM_LAYERS = 4
HIDDEN_SIZE = 256
INTERMEDIATE_SIZE = 960
NUM_HEADS = 4
NUM_KV_HEADS = 2
HEAD_SIZE = 64  # one that vLLM's CPU attention has
VOCAB_SIZE = 1024
MAX_MODEL_LEN = 8192

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIAL_TOKENS = (PAD, BEGIN, END, *(f"<|{role}|>" for role in ROLES))  # ids 0, 1, 2, ...

# How often a token is chosen follows the length of its embedding, which is its row of the output layer too.
# Without these factors much of the output would be stray bytes and role markers, and few answers would end by
# themselves (with them: after two to some hundred tokens).
EMBEDDING_SCALE = 0.6
END_FACTOR = 1.15
SPECIAL_FACTOR = 0.1
UNPRINTABLE_FACTOR = 0.3
# Layers outweigh the embedding they are added to: otherwise a tied model repeats its last token for ever.
LAYER_GAIN = 4.0

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}
    {{- '<|system|>Functions you can call by <tool_call>{"name": NAME, "arguments": {...}}</tool_call>:' }}
    {%- for tool in tools %}{{- '\\n' ~ (tool | tojson) }}{%- endfor %}
    {{- eos_token }}
{%- endif %}
{%- for message in messages %}
    {%- set role = 'system' if message.role == 'developer' else message.role %}
    {%- if role not in ('system', 'user', 'assistant', 'tool') %}
        {{- raise_exception('a message has the unknown role ' ~ message.role) }}
    {%- endif %}
    {{- '<|' ~ role ~ '|>' ~ (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>' ~ (call.function | tojson) ~ '</tool_call>' }}
    {%- endfor %}
    {%- if not (continue_final_message and loop.last) %}{{- eos_token }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}
"""

# The merges of the tokenizer are learned from this text; ordinary English takes two to three bytes per token.
CORPUS = """\
A cluster of machines answers the questions that people send to it. Each machine keeps a copy of the model
in its memory and works on many requests at the same time. When a new request comes in, a scheduler looks at
how much room every instance has left, and sends the request where it will have to wait the least. The first
part of the work is to read the whole prompt; after that the answer is written one token after another, and
nobody can know beforehand how long the answer is going to be. So the load of an instance changes all the
time, and what was a good place a minute ago may be a bad one now. Then the request is moved, with
everything the model remembers about it, to another instance, while it goes on being answered. The person
who asked does not notice anything.

Why would one want to do that? There are four reasons. An instance that runs out of memory has to stop
somebody and start again later, and this makes the answer late. Memory that is free, but in small pieces on
several instances, is of no use for a long prompt that needs it all in one place. Some requests are more
important than others, and should have more room around them. And when there is little to do, an instance
can be emptied and switched off, which saves money. Moving requests between instances helps with all of
these, because it makes every decision one that can be changed later on.

"How are you today?" she asked. "Thank you, I am very well," he said, "but I should like to know what the
weather will be like tomorrow, and whether I ought to take an umbrella with me." Nobody could tell him that.
Please write a short story about a cat and a dog who live in the same house. Explain how a computer works to
a child of five years. What is the capital of France, and which river flows through it? Give me a list of
ten things that I could do this weekend. Translate the following sentence into English. Write a function
that returns the sum of two numbers, and test it.

Once upon a time there was a small town between the mountains and the sea. In the morning the sun came up
over the water, and in the evening it went down behind the hills. The people there were neither rich nor
poor; they worked in their gardens, went out in their boats, and met in the market place on Saturday. One
day a stranger arrived who had come a long way. He had seen great cities and crossed wide rivers, and the
children wanted to hear about all of it. He sat down under the old tree, thought for a while, and then began
to speak: "First of all, you must understand that the world is much larger than it looks from here, and that
most of it is made of questions."

{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}
{"type": "object", "properties": {"id": {"type": "integer"}, "value": {"type": "string"}}, "required": ["id"]}
def main(args: list[str]) -> int:
    for name, value in sorted(items.items()):
        print(f"{name} = {value}")
    return 0
0 1 2 3 4 5 6 7 8 9 10 11 12 20 24 30 32 48 50 60 64 100 128 256 500 512 1000 1024 2000 2024 4096 8192
"""


def build(state_dir: Path) -> Path:
    """Directory of the model under `state_dir`, built if need be; several processes may call this at once."""
    models_dir = Path(state_dir).expanduser() / "models"
    model_dir = models_dir / f"tiny-{version_hash()}"
    if model_dir.is_dir():
        return model_dir
    models_dir.mkdir(parents=True, exist_ok=True)
    with (models_dir / ".tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not model_dir.is_dir():
            partial_dir = models_dir / ".tiny.partial"
            shutil.rmtree(partial_dir, ignore_errors=True)  # of a builder that was killed
            partial_dir.mkdir()
            _write_model(partial_dir)
            partial_dir.rename(model_dir)
    return model_dir


def version_hash() -> str:
    """Changes whenever this file does, so that an old build is never taken for the present one."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def num_parameters() -> int:
    """Number of weights, the tied output layer counted once."""
    return sum(rows * columns for rows, columns in _matrix_shapes().values()) + HIDDEN_SIZE * (
        2 * NUM_LAYERS + 1
    )


def _write_model(directory: Path) -> None:
    from safetensors.numpy import save_file

    tokenizer = _train_tokenizer()
    save_file(_weights(tokenizer.get_vocab()), directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    for name, content in (
        ("config.json", _model_config()),
        ("generation_config.json", _generation_config()),
        ("tokenizer_config.json", _tokenizer_config()),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for path in directory.iterdir():  # the rename must not reach the disk before what it publishes
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _train_tokenizer() -> Any:
    """A `tokenizers.Tokenizer`: byte-level BPE, so that every text and every output has a token sequence."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    begin_id = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, begin_id)]
    )
    return tokenizer


def _matrix_shapes() -> dict[str, tuple[int, int]]:
    """(rows = outputs, columns = inputs) of every matrix by its name in a Llama checkpoint."""
    shapes = {"model.embed_tokens.weight": (VOCAB_SIZE, HIDDEN_SIZE)}
    for layer in range(NUM_LAYERS):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        shapes |= {
            f"{attention}.q_proj.weight": (NUM_HEADS * HEAD_SIZE, HIDDEN_SIZE),
            f"{attention}.k_proj.weight": (NUM_KV_HEADS * HEAD_SIZE, HIDDEN_SIZE),
            f"{attention}.v_proj.weight": (NUM_KV_HEADS * HEAD_SIZE, HIDDEN_SIZE),
            f"{attention}.o_proj.weight": (HIDDEN_SIZE, NUM_HEADS * HEAD_SIZE),
            f"{mlp}.gate_proj.weight": (INTERMEDIATE_SIZE, HIDDEN_SIZE),
            f"{mlp}.up_proj.weight": (INTERMEDIATE_SIZE, HIDDEN_SIZE),
            f"{mlp}.down_proj.weight": (HIDDEN_SIZE, INTERMEDIATE_SIZE),
        }
    return shapes


def _weights(vocab: dict[str, int]) -> dict[str, np.ndarray]:
    """Uniform float32 weights from numpy's frozen generator: only exact operations, the same on every CPU."""
    import numpy as np

    random = np.random.RandomState(SEED)
    weights: dict[str, np.ndarray] = {}
    for name, (rows, columns) in _matrix_shapes().items():
        unit = random.random_sample((rows, columns)).astype(np.float32) * np.float32(2) - np.float32(1)
        scale = EMBEDDING_SCALE if name == "model.embed_tokens.weight" else LAYER_GAIN * (3 / columns) ** 0.5
        weights[name] = unit * np.float32(scale)
    weights["model.embed_tokens.weight"] *= _token_factors(vocab)[:, None]
    ones = np.ones(HIDDEN_SIZE, dtype=np.float32)
    for layer in range(NUM_LAYERS):
        weights[f"model.layers.{layer}.input_layernorm.weight"] = ones
        weights[f"model.layers.{layer}.post_attention_layernorm.weight"] = ones
    weights["model.norm.weight"] = ones
    return weights


def _token_factors(vocab: dict[str, int]) -> np.ndarray:
    import numpy as np

    factors = np.ones(VOCAB_SIZE, dtype=np.float32)
    for token, token_id in vocab.items():
        if token == END:
            factors[token_id] = END_FACTOR
        elif token in SPECIAL_TOKENS:
            factors[token_id] = SPECIAL_FACTOR
        elif len(token) == 1 and not ("!" <= token <= "~" or token in "\u0120\u010a"):  # space and newline
            factors[token_id] = UNPRINTABLE_FACTOR
    return factors


def _model_config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_MODEL_LEN,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "use_cache": True,
        **_special_ids(),
    }


def _generation_config() -> dict[str, Any]:
    return _special_ids()


def _special_ids() -> dict[str, int]:
    return {
        "bos_token_id": SPECIAL_TOKENS.index(BEGIN),
        "eos_token_id": SPECIAL_TOKENS.index(END),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": MAX_MODEL_LEN,
        "clean_up_tokenization_spaces": False,
    }
