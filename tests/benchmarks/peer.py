"""vLLM itself as the benchmarks' peer, `vllm serve` and `vllm bench serve`, and what the benchmarks share."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.e2e.running import free_port, settings

READY_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 30.0
SERVED_NAME = "tiny"

# Spelled out where the defaults of `vllm serve` and of an engine inside llumnix could differ.
ENGINE_OPTIONS: dict[str, Any] = {
    "max_model_len": 8192,
    "dtype": "float32",
    "kv_cache_memory_bytes": 256 * 1024**2,
    "enforce_eager": True,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 2048,
}

QUIET = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Layout:
    """How vLLM's processes and threads are laid out on a CPU machine."""

    environment: Mapping[str, str]
    options: tuple[str, ...] = ()
    data_parallel_options: tuple[str, ...] = ()
    pinned: bool = False


_ONE_PROCESS_PER_ENGINE = {**QUIET, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
_UNI = ("--distributed-executor-backend", "uni")
LAYOUTS = {
    # The same as llumnix: each engine is one process on a core of its own, one API server process.
    "uni-pinned": Layout(_ONE_PROCESS_PER_ENGINE, _UNI, ("--api-server-count", "1"), pinned=True),
    "uni": Layout(_ONE_PROCESS_PER_ENGINE, _UNI, ("--api-server-count", "1")),
    # What vLLM does when told nothing: a worker process per engine, an API server per engine.
    "default": Layout(QUIET),
}


def our_config(state_dir: Path) -> dict[str, Any]:
    """Two instances behind llumnixd, with the peer's engine options."""
    config = settings(state_dir, engine=ENGINE_OPTIONS)
    del config["ray"]  # the tests' many logical cores
    return config


@dataclass(frozen=True)
class Peer:
    """One `vllm serve` and everything it started."""

    process: subprocess.Popen[bytes]
    url: str
    output_path: Path

    def is_healthy(self) -> bool:
        """Whether /health answers 200; RuntimeError with its output if the server has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"vllm serve ended:\n{self.output_path.read_text()[-4000:]}")
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        return False

    def wait_healthy(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.is_healthy():
            if time.monotonic() > deadline:
                raise RuntimeError(f"vllm serve not healthy after {timeout_s:g} s; see {self.output_path}")
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def pin_engines(self) -> int:
        """Give each engine process a core of its own, all its threads; returns the number of engines.

        VLLM_CPU_OMP_THREADS_BIND does this only where the model has a process apart from its engine.
        """
        engines = sorted((p for p in self.processes() if _is_engine(p)), key=lambda p: p.pid)
        cores = sorted(os.sched_getaffinity(0))
        for index, engine in enumerate(engines):
            for thread in engine.threads():
                os.sched_setaffinity(thread.id, {cores[index % len(cores)]})
        return len(engines)

    def stop(self) -> None:
        """SIGTERM to the server, and after a while SIGKILL to whatever is left of its process group."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _is_engine(process: psutil.Process) -> bool:
    return "EngineCore" in " ".join(process.cmdline())


def serve(
    model: str,
    directory: Path,
    layout: Layout,
    *,
    num_engines: int,
    options: Mapping[str, Any] = ENGINE_OPTIONS,
) -> Peer:
    """Start `vllm serve` on a free loopback port; does not wait for it."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    output_path = directory / "vllm.out"
    command = [*vllm("serve"), model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", SERVED_NAME, "--disable-uvicorn-access-log"]
    command += [*_flags(options), *layout.options]
    if num_engines > 1:
        command += ["--data-parallel-size", str(num_engines), *layout.data_parallel_options]
    with output_path.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **layout.environment},
            start_new_session=True,
        )
    return Peer(process, f"http://127.0.0.1:{port}", output_path)


@contextlib.contextmanager
def serving(
    model: str,
    directory: Path,
    layout: Layout,
    *,
    num_engines: int,
    options: Mapping[str, Any] = ENGINE_OPTIONS,
) -> Iterator[Peer]:
    """A `vllm serve` that is healthy, stopped at the end."""
    peer = serve(model, directory, layout, num_engines=num_engines, options=options)
    try:
        peer.wait_healthy()
        if layout.pinned and peer.pin_engines() != num_engines:
            raise RuntimeError(f"not {num_engines} engine processes found; see {peer.output_path}")
        yield peer
    finally:
        peer.stop()


def vllm(*words: str) -> list[str]:
    """vLLM's command line by this interpreter."""
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", *words]


def _flags(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        yield flag if value is True else f"{flag}={value}"


@dataclass(frozen=True)
class Load:
    """What `vllm bench serve` sends."""

    num_prompts: int
    request_rate: float | None = None
    """Poisson arrivals per second; None: as fast as `max_concurrency` allows."""
    max_concurrency: int | None = None
    seed: int = 0
    input_tokens: int = 256
    output_tokens: int = 64
    num_warmups: int = 16


def bench(url: str, model: str, directory: Path, load: Load) -> dict[str, Any]:
    """One run of `vllm bench serve`; its result file. RuntimeError if any request failed."""
    result_path = directory / "bench.json"
    command = vllm("bench", "serve")
    command += ["--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions"]
    command += ["--model", SERVED_NAME, "--tokenizer", model, "--dataset-name", "random"]
    command += ["--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens)]
    command += ["--num-prompts", str(load.num_prompts), "--num-warmups", str(load.num_warmups)]
    command += ["--seed", str(load.seed), "--temperature", "0", "--ignore-eos", "--disable-tqdm"]
    command += ["--percentile-metrics", "ttft,tpot,e2el", "--metric-percentiles", "50,99"]
    command += ["--save-result", "--save-detailed"]
    command += ["--result-dir", str(directory), "--result-filename", result_path.name]
    if load.request_rate is not None:
        command += ["--request-rate", str(load.request_rate)]
    if load.max_concurrency is not None:
        command += ["--max-concurrency", str(load.max_concurrency)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **QUIET})
    if done.returncode != 0 or not result_path.exists():
        raise RuntimeError(f"vllm bench serve failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(result_path.read_text())
    result_path.unlink()
    if result["completed"] != load.num_prompts:
        raise RuntimeError(f"{load.num_prompts - result['completed']} of {load.num_prompts} requests failed")
    return result


def parser(description: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line, with the option that all have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    return made


def unwind_on_sigterm() -> None:
    """Have SIGTERM end this process as Ctrl-C does, so that the servers it started are stopped."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def percentile(values: Sequence[float], percent: int) -> float:
    """Of any number of values; linear between neighbours."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def verdict(ratio: float, bar: float, *, at_least: bool) -> str:
    met = ratio >= bar if at_least else ratio <= bar
    return f"{ratio:.3f} (bar {'>=' if at_least else '<='} {bar:g}: {'met' if met else 'MISSED'})"


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """CPU time that processes have used so far."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total
