"""The commands that change something."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer

from llumnix.ctl.api import path_of
from llumnix.ctl.session import Json, TargetArgument, print_json, session_of, tell
from llumnix.ctl.waiting import Watch, restart_all, wait_drained


class OnTimeout(StrEnum):
    """What happens to the requests that a drain could not move in time."""

    LEAVE = "leave"
    ABORT = "abort"


RequestArgument = Annotated[str, typer.Argument(help="The OpenAI response id, or the internal one.")]
Timeout = Annotated[
    float | None, typer.Option(min=0.001, help="Seconds that a drain may take; no limit by default.")
]
OnTimeoutOption = Annotated[OnTimeout, typer.Option(help="What then becomes of the requests left.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (cordon, uncordon, drain, remove, terminate, priority, migrate, abort, scale):
        app.command()(command)
    rollout = typer.Typer(no_args_is_help=True)
    rollout.command("restart")(rollout_restart)
    # A callback of its own makes `rollout` a group although it has one command only.
    rollout.callback()(_rollout)
    app.add_typer(rollout, name="rollout")


def cordon(context: typer.Context, target: TargetArgument, as_json: Json = False) -> None:
    """Send an instance, or all of a node, no new requests."""
    _, name, answer = session_of(context).post(target, "cordon")
    _done(f"{name} is cordoned", answer, as_json=as_json)


def uncordon(context: typer.Context, target: TargetArgument, as_json: Json = False) -> None:
    """Undo a cordon or a drain."""
    _, name, answer = session_of(context).post(target, "uncordon")
    _done(f"{name} takes requests again", answer, as_json=as_json)


def drain(
    context: typer.Context,
    target: TargetArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is safe to remove.")] = False,
    timeout: Timeout = None,
    on_timeout: OnTimeoutOption = OnTimeout.LEAVE,
    as_json: Json = False,
) -> None:
    """Move everything away from an instance or a node, live; with --wait, exit code 5 if that fails."""
    session = session_of(context)
    kind, name, answer = session.post(target, "drain", _drain_body(timeout, on_timeout))
    if wait:
        wait_drained(session.api, kind, name, Watch(None, tell))
        answer = session.api.command("GET", path_of(kind, name))
    _done(f"{name} is {'drained: safe to remove' if wait else 'being drained'}", answer, as_json=as_json)


def remove(
    context: typer.Context,
    instance: Annotated[str, typer.Argument(help="Its id.")],
    as_json: Json = False,
) -> None:
    """Drain an instance, then remove it."""
    answer = session_of(context).api.command("DELETE", path_of("instances", instance))
    _done(f"{instance} is being drained, then removed", answer, as_json=as_json)


def terminate(
    context: typer.Context,
    target: TargetArgument,
    deadline: Annotated[float, typer.Option(min=0, help="Seconds until its machine is taken away.")],
    as_json: Json = False,
) -> None:
    """Pass on a termination notice (spot machines): all is moved away in time."""
    _, name, answer = session_of(context).post(target, "terminate", {"deadline_s": deadline})
    _done(f"{name} is emptied and removed within {deadline:g} s", answer, as_json=as_json)


def priority(
    context: typer.Context,
    request: RequestArgument,
    priority_class: Annotated[str, typer.Argument(metavar="CLASS", help="One of [priorities].")],
    as_json: Json = False,
) -> None:
    """Give a request another priority class, at once."""
    body = {"priority": priority_class}
    answer = session_of(context).api.command("PATCH", path_of("requests", request), body)
    _done(f"{request} has priority {priority_class}", answer, as_json=as_json)


def migrate(
    context: typer.Context,
    request: RequestArgument,
    to: Annotated[str | None, typer.Option(help="The instance; the scheduler's choice by default.")] = None,
    as_json: Json = False,
) -> None:
    """Begin to move a request live; all of its n children, one by one."""
    path = path_of("requests", request, "migrate")
    answer = session_of(context).api.command("POST", path, {"to": to})
    _done("\n".join(_begun(answer)), answer, as_json=as_json)


def _begun(answer: dict[str, Any]) -> Iterator[str]:
    """What the answer to `migrate` says, a line each."""
    yield from (f"migration {migration} is under way" for migration in answer["migrations"])
    if answer["following"]:
        yield f"then {', '.join(answer['following'])}"
    yield from (f"{request} stays: {why}" for request, why in answer["refused"].items())


def abort(context: typer.Context, request: RequestArgument, as_json: Json = False) -> None:
    """Abort a request; its client gets an error."""
    answer = session_of(context).api.command("DELETE", path_of("requests", request))
    _done(f"{request} is aborted", answer, as_json=as_json)


def scale(
    context: typer.Context,
    count: Annotated[int, typer.Argument(min=1, help="Instances there are to be.")],
    as_json: Json = False,
) -> None:
    """Have this many instances: start some, or drain and remove those with the fewest requests."""
    answer = session_of(context).api.command("POST", "/v1/cluster/scale", {"count": count})
    _done(f"on the way to {count} instances", answer, as_json=as_json)


def _rollout() -> None:
    """Renew all instances, one after the other."""


def rollout_restart(
    context: typer.Context,
    timeout: Timeout = None,
    on_timeout: OnTimeoutOption = OnTimeout.LEAVE,
    wait_timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds until one instance serves again.")
    ] = 900.0,
) -> None:
    """Restart every instance: each is drained first, and serves again before the next one's turn."""
    watch = Watch(wait_timeout, tell)
    done = restart_all(session_of(context).api, _drain_body(timeout, on_timeout), watch)
    tell(f"restarted: {', '.join(done) or 'none, as none was running'}")


def _drain_body(timeout_s: float | None, on_timeout: OnTimeout) -> dict[str, Any]:
    return {"timeout_s": timeout_s, "on_timeout": on_timeout.value}


def _done(message: str, answer: dict[str, Any], *, as_json: bool) -> None:
    tell(message)
    if as_json:
        print_json(answer)
