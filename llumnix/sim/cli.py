"""llumnix-sim: the cluster in virtual time, from the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from llumnix.core.load import Headroom
from llumnix.core.policies import POLICIES
from llumnix.errors import ConfigError, LlumnixError
from llumnix.profiles import find_profile, save_profile
from llumnix.sim import matching, paper, report, tables
from llumnix.sim.lengths import DATASETS
from llumnix.sim.records import SimScaling, SimSetup
from llumnix.sim.runs import Run, simulate_all
from llumnix.sim.workloads import PAPER_SEED, Workload

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
_TABLE_WIDTH = 160

T = TypeVar("T")

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Simulate a cluster in virtual time with the scheduler and engine loop that run in production.",
)

PolicyList = Annotated[
    str, typer.Option(metavar="A,B", help=f"Policies to compare: {', '.join(POLICIES)}.", show_default=False)
]
ProfileName = Annotated[str, typer.Option(help="Hardware profile: a name, or a JSON file.")]
Instances = Annotated[int, typer.Option(min=1, help="Instances; with auto-scaling the most there may be.")]
ApiServers = Annotated[int, typer.Option(min=1, help="API servers that dispatch on reports of their own.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
OutFile = Annotated[
    Path | None, typer.Option(help="Write the results to a .json or .csv file too.", show_default=False)
]
PlotFile = Annotated[Path | None, typer.Option(help="Draw the results into a PNG file.", show_default=False)]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process of its own.")]


@app.command()
def run(
    trace: Annotated[str, typer.Option(help=f"CSV or JSONL file, or one of {', '.join(DATASETS)}.")] = "L-L",
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests per second; a file's times are stretched to it.")
    ] = None,
    cv: Annotated[
        float, typer.Option(min=0.01, help="Burstiness: Gamma inter-arrival times; 1 is Poisson.")
    ] = 1.0,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests; of a file, the first ones.")] = None,
    instances: Instances = 16,
    policies: PolicyList = "llumnix+",
    profile: ProfileName = "a10-llama-7b",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = PAPER_SEED,
    api_servers: ApiServers = 1,
    high_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests of high priority, with its headroom.")
    ] = 0.0,
    prefix_groups: Annotated[int, typer.Option(min=0, help="Groups of prompts that begin alike.")] = 0,
    prefix_tokens: Annotated[int, typer.Option(min=0, help="Length of a group's common beginning.")] = 0,
    longest: Annotated[
        int | None, typer.Option(min=1, help="Leave out requests of more tokens, prompt and output together.")
    ] = None,
    autoscale: Annotated[
        float | None,
        typer.Option(
            metavar="T", help="Scale to keep the average freeness in [T, T+50].", show_default=False
        ),
    ] = None,
    migration_threshold: Annotated[float, typer.Option(help="Freeness below which llumnix migrates.")] = 3.0,
    rescheduling: Annotated[bool, typer.Option(help="Whether running requests migrate at all.")] = True,
    json_output: JsonFlag = False,
    out: OutFile = None,
    out_requests: Annotated[
        Path | None, typer.Option(help="Write every request to a .json or .csv file.", show_default=False)
    ] = None,
    plot: PlotFile = None,
    jobs: Jobs = 1,
) -> None:
    """Run a workload under one or more policies."""
    workload = Workload(
        trace,
        requests,
        rate,
        cv=cv,
        seed=seed,
        high_share=high_share,
        high_priority=paper.HIGH_PRIORITY,
        prefix_groups=prefix_groups,
        prefix_tokens=prefix_tokens,
        longest=longest,
    )
    headroom = {paper.HIGH_PRIORITY: Headroom(target_load_tokens=paper.HIGH_TARGET_TOKENS)}
    setups = [
        SimSetup(
            profile=_known_profile(profile),
            policy=policy,
            instances=instances,
            scaling=None if autoscale is None else SimScaling(1, instances, autoscale, autoscale + 50),
            api_servers=api_servers,
            seed=seed,
            rescheduling=rescheduling,
            migration_threshold=migration_threshold,
            headroom=headroom if high_share else {},
        )
        for policy in _policies(policies)
    ]
    results = _told(
        simulate_all([Run(setup, workload) for setup in setups], jobs),
        lambda result: f"{result.setup.policy}: {result.engine_steps} steps in {result.cpu_s:.1f} s",
    )
    records = [record for result in results for record in report.run_records(result, rate)]
    _show(records, tables.run_table, as_json=json_output, out=out)
    if out_requests is not None:
        report.write_records(
            out_requests, [row for result in results for row in report.request_records(result)]
        )
    if plot is not None:
        from llumnix.sim.plot import plot_runs

        plot_runs(plot, results)


@app.command(name="paper")
def rerun_figure(
    figure: Annotated[int, typer.Option(help="11, 13, 14 or 15.", show_default=False)],
    panel: Annotated[
        list[str],
        typer.Option(help="Only this panel; can be repeated.", default_factory=list, show_default=False),
    ],
    rate: Annotated[
        list[float], typer.Option(help="Only this rate, published or not.", default_factory=list)
    ],
    cv: Annotated[
        list[float],
        typer.Option(help="Only points of this burstiness.", default_factory=list, show_default=False),
    ],
    match: Annotated[
        bool,
        typer.Option("--match", help="Run at the rates where the baseline has its published P99 prefill."),
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep rates that --match had to find.")] = False,
    policies: PolicyList = "",
    requests: Annotated[int, typer.Option(min=1)] = 10_000,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each point; the medians are shown.")] = 1,
    instances: Instances = 16,
    profile: ProfileName = "a10-llama-7b",
    api_servers: ApiServers = 1,
    json_output: JsonFlag = False,
    out: OutFile = None,
    plot: PlotFile = None,
    jobs: Jobs = 1,
) -> None:
    """Rerun a figure of the paper and show the published points beside ours."""
    if figure not in paper.POLICIES:
        raise ConfigError(f"--figure {figure} is not valid: expected 11, 13, 14 or 15.")
    base = SimSetup(profile=_known_profile(profile), instances=instances, api_servers=api_servers)
    points = paper.points_of(figure, base, requests, panel)
    points = [p for p in paper.at_rates(points, rate) if not cv or p.workload.cv in cv]
    if match:
        points = [matching.at_matched_rate(point, seeds, jobs, keep=keep, tell=_tell) for point in points]
    chosen = _policies(policies, paper.BASE) if policies else paper.POLICIES[figure]
    rows = _told(
        paper.compare(points, chosen, seeds, jobs),
        lambda row: f"{row.panel} {row.x:g} {row.policy}: P99 prefill {row.metrics.prefill_p99_s:.3g} s",
    )
    records = [report.paper_record(row) for row in rows]
    _show(records, tables.paper_table, as_json=json_output, out=out)
    if figure == 15 and not json_output:
        for line in tables.cost_lines(records):
            typer.echo(line)
    if plot is not None:
        from llumnix.sim.plot import plot_figure

        plot_figure(plot, records)


@app.command()
def replay(
    file: Annotated[
        Path, typer.Argument(help="A record of a live run ([scheduler] record).", show_default=False)
    ],
    policy: Annotated[str, typer.Option(help=f"One of {', '.join(POLICIES)}.", show_default=False)],
    limit: Annotated[int, typer.Option(min=0, help="Differences to show.")] = 20,
    json_output: JsonFlag = False,
) -> None:
    """Show what another policy would have done with the events of a live run."""
    from llumnix.sim.replay import replay_file

    [other] = _policies(policy)
    replayed = replay_file(file, other)
    if json_output:
        typer.echo(report.as_json(map(asdict, replayed.differences)), nl=False)
        return
    _print(tables.replay_table(replayed))
    _print(tables.difference_table(replayed, limit))


@app.command()
def profile(
    url: Annotated[str, typer.Option(help="OpenAI endpoint of one idle instance.", show_default=False)],
    kv_bytes_per_token: Annotated[
        int,
        typer.Option(
            min=1,
            help="Of the model's KV cache, all layers; sets how long migrations copy.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the profile.")] = "fitted",
    num_blocks: Annotated[
        int | None, typer.Option(min=1, help="KV blocks of the instance; by default what its /metrics say.")
    ] = None,
    longest: Annotated[int, typer.Option(min=64, help="Longest prompt to send, in tokens.")] = 2048,
    largest_batch: Annotated[int, typer.Option(min=2, help="Most requests at a time.")] = 32,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file that --profile takes.", show_default=False)
    ] = None,
) -> None:
    """Fit a hardware profile to a live instance."""
    from llumnix.sim.fitting import Plan, fit_profile

    plan = Plan(longest, largest_batch)
    fitted = fit_profile(url, name, plan, kv_bytes_per_token, num_blocks, api_key)
    typer.echo(json.dumps(asdict(fitted), indent=2))
    if out is not None:
        save_profile(fitted, out)


def main() -> None:
    """Entry point of the command `llumnix-sim`."""
    # What is printed is the result and nothing else, whatever the engine has to say.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        app(prog_name="llumnix-sim", standalone_mode=True)
    except LlumnixError as error:
        typer.echo(str(error), err=True)
        raise SystemExit(EXIT_WRONG_INPUT if isinstance(error, ConfigError) else EXIT_FAILED) from None


def _policies(text: str, ending: str = "") -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if (name.removesuffix(ending) if ending else name) not in POLICIES:
            raise ConfigError(f'policy = "{name}" is not valid: expected one of {", ".join(POLICIES)}.')
    return names


def _known_profile(name: str) -> str:
    try:
        find_profile(name)
    except ValueError as error:
        raise ConfigError(f"--profile is not valid: {error}.") from None
    return name


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _told(items: Iterable[T], describe: Callable[[T], str]) -> list[T]:
    """The items; as each is there, a line says so on stderr, with what differs between two equal runs."""
    found = []
    for item in items:
        found.append(item)
        _tell(describe(item))
    return found


def _show(
    records: Sequence[report.Record],
    table: Callable[[Sequence[report.Record]], Table],
    *,
    as_json: bool,
    out: Path | None,
) -> None:
    if as_json:
        typer.echo(report.as_json(records), nl=False)
    else:
        _print(table(records))
    if out is not None:
        report.write_records(out, records)


def _print(table: Table) -> None:
    console = Console()
    # In a file a table is as wide as it must be.
    (console if console.is_terminal else Console(width=_TABLE_WIDTH)).print(table)
