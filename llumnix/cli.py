"""llumnixd: the command that starts a cluster."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llumnix import __version__
from llumnix.errors import ConfigError, LlumnixError

if TYPE_CHECKING:
    from llumnix.config import Config

EXIT_FAILED = 1
EXIT_WRONG_CONFIG = 2

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llumnixd {__version__}")
        raise typer.Exit


@app.command()
def llumnixd(
    config: Annotated[Path, typer.Option(help="The cluster's TOML file.", show_default=False)],
    check: Annotated[
        bool, typer.Option("--check", help="Check the file, print what is in force, and end.")
    ] = False,
    join: Annotated[
        bool, typer.Option("--join", help="Add this machine to a cluster as a further Ray node.")
    ] = False,
    head: Annotated[
        bool,
        typer.Option("--head", help="Keep the head's Ray node and what runs there; llumnixd may restart."),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Run a cluster of vLLM instances until a signal ends it: the first drains, the second stops at once."""
    try:
        raise typer.Exit(_run(config, check=check, join=join, head=head))
    except LlumnixError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_WRONG_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED) from None


def main() -> None:
    """Entry point of the command `llumnixd`."""
    app(prog_name="llumnixd")


def _run(path: Path, *, check: bool, join: bool, head: bool) -> int:
    from llumnix.config import load_config

    config = load_config(path)
    if join and head:
        raise ConfigError("--join and --head are for different machines: only one of them can be given.")
    if check:
        _check(config, join=join)
        return 0
    if join or head:
        from llumnix import node_daemon

        return node_daemon.join(config) if join else node_daemon.head(config)
    from llumnix import daemon

    return daemon.run(path, config)


def _check(config: Config, *, join: bool) -> None:
    """Prints the effective configuration after every check that needs nothing started."""
    from llumnix.config import to_toml

    if join:
        from llumnix.node_daemon import check_joining

        check_joining(config)
    else:
        _check_cluster(config)
    typer.echo(to_toml(config), nl=False)


def _check_cluster(config: Config) -> None:
    from llumnix.config import check_files, check_node_ip, check_ports
    from llumnix.engine.memory import check_memory

    check_files(config)
    runs = _runs_here(config)
    if runs:
        check_node_ip(config)
    else:
        check_ports(config)
    # What is printed is TOML and nothing else, whatever vLLM has to say.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    with contextlib.redirect_stdout(sys.stderr):
        from llumnix.engine.args import check_engine_args

        check_engine_args(config)
    if not runs:
        check_memory(config)


def _runs_here(config: Config) -> bool:
    """Whether this very cluster runs: then it is the one that has the ports and the memory."""
    from llumnix.cluster import local_node

    try:
        return local_node.living(config.cluster.state_dir) is not None
    except OSError:  # a state directory of another user
        return False


if __name__ == "__main__":
    main()
