"""What an instance's load reports cost its engine loop, with a real CPU engine in this process.

For each number of running and waiting requests: the time of a step; the time that a report takes on the
engine loop (SchedulerView.load and the output queue) and on the sending thread (encoding, for the API server
and the manager), which the interpreter lock takes from the loop too; how often InstanceCore would then
report; and the part of the loop's time that reports take at that rate.
"""

from __future__ import annotations

import os
import queue
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llumnix.config import parse_config
from llumnix.core.load import InstanceReport
from llumnix.engine.main import prepare_environment
from tests.benchmarks import peer

BAR_PERCENT = 1.0
MAX_RUNNING = 256
MAX_INTERVAL_S = 0.5  # however deep the queue
PROMPT_TOKENS = 64
MAX_TOKENS = 2000
PRIORITIES = (0, -10)


@dataclass(frozen=True)
class Cost:
    """Of one case; times are medians."""

    running: int
    waiting: int
    step_ms: float
    loop_us: float
    sender_us: float
    interval_ms: float
    """Between two reports, as InstanceCore.publish_report sets it; at least a step."""

    @property
    def loop_percent(self) -> float:
        return (self.loop_us + self.sender_us) / 10 / self.interval_ms


def build_engine(state_dir: Path) -> Any:
    """A vLLM EngineCore as an instance has it, without its sockets."""
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    from llumnix.engine.args import engine_args

    document = peer.our_config(state_dir)
    document["engine"] = {**document["engine"], "max_num_seqs": MAX_RUNNING, "kv_cache_memory_bytes": "1G"}
    args = engine_args(parse_config(document))
    config = args.create_engine_config(usage_context=UsageContext.ENGINE_CONTEXT)
    return EngineCore(config, Executor.get_class(config), log_stats=True)


def add_requests(engine: Any, num_requests: int) -> None:
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    rng = random.Random(0)
    params = SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True, temperature=0)
    for index in range(num_requests):
        request = EngineCoreRequest(
            request_id=f"request-{index}",
            prompt_token_ids=[rng.randrange(300) for _ in range(PROMPT_TOKENS)],
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            priority=PRIORITIES[index % len(PRIORITIES)],
        )
        engine.add_request(*engine.preprocess_add_request(request))


def measure(engine: Any, running: int, waiting: int, num_samples: int) -> Cost:
    """Bring the engine to that state, take the figures while it decodes, and empty it again."""
    from llumnix.engine.instance import REPORT_COST_LIMIT, REPORT_INTERVAL_S
    from llumnix.engine.scheduler_view import MovesUnderWay, SchedulerView
    from llumnix.wire import Report, codec

    scheduler = engine.scheduler
    scheduler.max_num_active_reqs = running  # the rest waits
    add_requests(engine, running + waiting)
    while len(scheduler.running) < running or any(r.num_output_tokens == 0 for r in scheduler.running):
        engine.step()
    view, encoder = SchedulerView(scheduler), codec().encoder
    output_queue: queue.SimpleQueue[InstanceReport] = queue.SimpleQueue()
    steps_s, loops_s, senders_s = [], [], []
    for sample in range(num_samples):
        steps_s.append(_timed(engine.step))
        loops_s.append(
            _timed(lambda: output_queue.put_nowait(view.load(0, 1.0, 1000.0, {0: 1000}, MovesUnderWay())))
        )
        report = output_queue.get_nowait()
        numbered = replace(report, seq=sample)
        senders_s.append(_timed(lambda: (encoder.encode(numbered), encoder.encode(Report(numbered)))))  # noqa: B023
    assert (report.running, report.waiting) == (running, waiting), report
    engine.abort_requests(list(scheduler.requests))
    engine.step()
    step_s, loop_s, sender_s = (statistics.median(values) for values in (steps_s, loops_s, senders_s))
    interval_s = max(step_s, min(MAX_INTERVAL_S, max(REPORT_INTERVAL_S, loop_s / REPORT_COST_LIMIT)))
    return Cost(running, waiting, 1e3 * step_s, 1e6 * loop_s, 1e6 * sender_s, 1e3 * interval_s)


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def report(costs: list[Cost], console: Console) -> None:
    table = Table(title="cost of load reports")
    headings = ("running", "waiting", "step ms", "report us", "sending us", "interval ms", "% of the loop")
    for heading in headings:
        table.add_column(heading, justify="right")
    for cost in costs:
        table.add_row(
            str(cost.running),
            str(cost.waiting),
            f"{cost.step_ms:.2f}",
            f"{cost.loop_us:.0f}",
            f"{cost.sender_us:.0f}",
            f"{cost.interval_ms:.0f}",
            f"{cost.loop_percent:.3f}",
        )
    console.print(table)
    shares = [cost.loop_percent for cost in costs]
    worst = peer.verdict(max(shares), BAR_PERCENT, at_least=False)
    console.print(f"median {statistics.median(shares):.3f} % of the loop's time; worst {worst}")


def main() -> None:
    parser = peer.parser(__doc__)
    parser.add_argument("--running", type=int, nargs="+", default=[1, 32, 128, MAX_RUNNING], metavar="N")
    parser.add_argument("--waiting", type=int, nargs="+", default=[0, 1000], metavar="W")
    parser.add_argument("--samples", type=int, default=100, help="per case (default: %(default)s)")
    args = parser.parse_args()
    if max(args.running) > MAX_RUNNING:
        parser.error(f"--running: at most {MAX_RUNNING}")
    prepare_environment(1)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        engine = build_engine(Path(directory))
        costs = [measure(engine, n, w, args.samples) for n in args.running for w in args.waiting]
        engine.shutdown()
    report(costs, Console(highlight=False))
    peer.write_json(args.json, {"costs": [{**asdict(c), "loop_percent": c.loop_percent} for c in costs]})


if __name__ == "__main__":
    main()
