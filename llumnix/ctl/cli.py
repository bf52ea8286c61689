"""llumnixctl: a cluster from the command line."""

import contextlib
import signal
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llumnix.admin.schema import (
    DEFAULT_URL,
    Cluster,
    EventPage,
    InstancePage,
    LogTail,
    MigrationPage,
    NodePage,
    RequestPage,
)
from llumnix.ctl import actions, support, tables, waiting
from llumnix.ctl.api import path_of
from llumnix.ctl.errors import HELP, CtlError, Exit
from llumnix.ctl.session import Json, Session, print_items, print_json, session_of, tell

Limit = Annotated[int | None, typer.Option(min=1, help="At most so many; all by default.")]


class _Commands(TyperGroup):
    """Ends with the sentence and the exit code of a CtlError."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CtlError as error:
            tell(str(error))
            raise typer.Exit(error.code) from None


app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False, no_args_is_help=True, epilog=HELP)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llumnixctl {installed_version('llumnix')}")
        raise typer.Exit


@app.callback()
def llumnixctl(
    context: typer.Context,
    url: Annotated[str, typer.Option(help="The daemon's admin API.", envvar="LLUMNIX_URL")] = DEFAULT_URL,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token; by default admin.token in ~/.local/state/llumnix or /var/lib/llumnix.",
            envvar="LLUMNIX_TOKEN_FILE",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Look at and operate a llumnix cluster: tables for people, --json for programs."""
    context.obj = session = Session(url, token_file)
    context.call_on_close(session.close)


@app.command()
def status(context: typer.Context, as_json: Json = False) -> None:
    """Show the cluster at a glance; exit code 6 unless all of it serves."""
    cluster = session_of(context).api.get("/v1/cluster", Cluster)
    if as_json:
        print_json(cluster.model_dump(mode="json"))
    else:
        tables.show(tables.cluster(cluster))
    if cluster.state != "serving":
        raise typer.Exit(Exit.NOT_SERVING)


@app.command()
def instances(context: typer.Context, as_json: Json = False) -> None:
    """List the instances."""
    items = session_of(context).api.items("/v1/instances", InstancePage)
    print_items(items, tables.instances(items), as_json=as_json)


@app.command()
def nodes(context: typer.Context, as_json: Json = False) -> None:
    """List the nodes."""
    items = session_of(context).api.items("/v1/nodes", NodePage)
    print_items(items, tables.nodes(items), as_json=as_json)


@app.command()
def requests(
    context: typer.Context,
    instance: Annotated[str | None, typer.Option(help="Only those there.")] = None,
    priority: Annotated[str | None, typer.Option(help="Only those of this class.")] = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """List the unfinished requests, the oldest first."""
    items = session_of(context).api.items(
        "/v1/requests", RequestPage, limit, instance=instance, priority=priority
    )
    print_items(items, tables.requests(items), as_json=as_json)


@app.command()
def migrations(context: typer.Context, limit: Limit = 20, as_json: Json = False) -> None:
    """List the migrations under way and the latest that ended, the newest first."""
    items = session_of(context).api.items("/v1/migrations", MigrationPage, limit)
    print_items(items, tables.migrations(items), as_json=as_json)


@app.command()
def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until ^C.")] = False,
    since: Annotated[int | None, typer.Option(min=0, help="Those after this number.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many, of those there are.")] = 50,
    as_json: Json = False,
) -> None:
    """Show the journal, the oldest first; with --json one object a line."""
    api = session_of(context).api
    latest = api.items("/v1/events", EventPage, limit, order="desc", since=since)[::-1]
    last = latest[-1].seq if latest else since
    for event in latest:
        typer.echo(event.model_dump_json() if as_json else tables.event_line(event))
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            for event in waiting.follow(api, last, tell):
                typer.echo(event.model_dump_json() if as_json else tables.event_line(event))


@app.command()
def logs(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="An instance's id, apiN, or llumnixd.")],
    lines: Annotated[int, typer.Option(min=1, max=10_000, help="Lines of its end.")] = 200,
    node: Annotated[
        str | None, typer.Option(help="The node that has it; where an instance is or was last by default.")
    ] = None,
) -> None:
    """Show the end of a log, also of one on another node."""
    for line in session_of(context).api.get(path_of("logs", name), LogTail, lines=lines, node=node).lines:
        typer.echo(line)


@app.command()
def config(context: typer.Context) -> None:
    """Show the configuration in force as JSON, secrets masked."""
    print_json(session_of(context).api.command("GET", "/v1/config"))


actions.add_to(app)
support.add_to(app)


def main() -> None:
    """Entry point of the command `llumnixctl`."""
    # Into `head`, which closes the pipe early: end quietly, as other commands do.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    app(prog_name="llumnixctl")
