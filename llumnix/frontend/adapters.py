"""vLLM's table of loaded LoRA adapters, which says when one is unloaded: vLLM itself tells nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vllm.lora.request import LoRARequest


class AdapterTable(dict[str, LoRARequest]):
    """By name, as OpenAIServingModels.lora_requests; calls `on_unloaded(lora_int_id)` after a deletion."""

    def __init__(self, loaded: Mapping[str, LoRARequest], on_unloaded: Callable[[int], None]) -> None:
        super().__init__(loaded)
        self._on_unloaded = on_unloaded

    def __delitem__(self, name: str) -> None:
        lora_int_id = self[name].lora_int_id
        super().__delitem__(name)
        self._on_unloaded(lora_int_id)
