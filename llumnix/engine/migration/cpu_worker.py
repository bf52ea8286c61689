"""vLLM's worker on CPU, made to take seeded requests whose prefill comes in chunks."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker as VllmCPUWorker

from llumnix.engine.migration import runner_v1


class CPUWorker(VllmCPUWorker):
    """Every instance on CPU has it: a seeded prompt that does not fit into one step would end stock vLLM."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        """See vLLM's Worker."""
        if self.use_v2_model_runner:  # its random numbers are a function of seed and position
            return super().sample_tokens(grammar_output)
        with runner_v1.undrawn(self.model_runner):
            return super().sample_tokens(grammar_output)
