"""A LoRA adapter for the built-in model, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from llumnix.engine.tiny_model import HEAD_SIZE, HIDDEN_SIZE, NUM_HEADS, NUM_KV_HEADS, NUM_LAYERS

RANK = 8
_WIDTHS = {"q_proj": NUM_HEADS * HEAD_SIZE, "v_proj": NUM_KV_HEADS * HEAD_SIZE}


def write_adapter(directory: Path, seed: int) -> Path:
    """An adapter whose weights are large enough to change what the model says."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(NUM_LAYERS):
        for module, width in _WIDTHS.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = rng.normal(size=(RANK, HIDDEN_SIZE)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = rng.normal(size=(width, RANK)).astype(np.float32)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": sorted(_WIDTHS),
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(described))
    return directory
