"""What one vLLM engine alone answers, to compare a cluster's answers with.

Run as a program it reads {"model": DIR, "prompts": [...], "max_tokens": n} from standard input and writes the
greedy texts as JSON to the file that is its argument (vLLM prints to standard output as it likes).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 180.0


def greedy_texts(model: str, prompts: list[str], max_tokens: int, directory: Path) -> list[str]:
    """The greedy continuations by one engine, in a process of its own that ends with it."""
    answer = directory / "greedy.json"
    question = json.dumps({"model": model, "prompts": prompts, "max_tokens": max_tokens})
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, str(answer)],
        input=question,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    texts: list[str] = json.loads(answer.read_text())
    return texts


def _answer(path: Path) -> None:
    from vllm import LLM, SamplingParams

    question = json.load(sys.stdin)
    llm = LLM(
        question["model"],
        dtype="float32",
        max_model_len=8192,
        kv_cache_memory_bytes=64 * 2**20,
        enforce_eager=True,
        disable_log_stats=True,
    )
    sampling = SamplingParams(temperature=0, max_tokens=question["max_tokens"], ignore_eos=True)
    outputs = llm.generate(question["prompts"], sampling, use_tqdm=False)
    path.write_text(json.dumps([output.outputs[0].text for output in outputs]))


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
