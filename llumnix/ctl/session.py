"""What all commands share: which cluster, which token, and in which form answers are printed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.table import Table

from llumnix.admin.schema import default_token_file
from llumnix.ctl.api import AdminApi, check_url, path_of, read_token
from llumnix.ctl.errors import CtlError, Exit
from llumnix.ctl.tables import show

Json = Annotated[bool, typer.Option("--json", help="Print the server's JSON.")]
TargetArgument = Annotated[
    str, typer.Argument(help="An instance's id, or a node's (node/ID where both exist).")
]


@dataclass
class Session:
    """Of one run of the command; nothing is read or connected before it is needed."""

    url: str
    token_file: Path | None

    @cached_property
    def api(self) -> AdminApi:
        check_url(self.url)
        return AdminApi(self.url, read_token(self.token_path))

    def close(self) -> None:
        """Close the connections, if there are any."""
        if "api" in self.__dict__:
            self.api.close()

    @property
    def token_path(self) -> Path:
        path = self.token_file or default_token_file(self.url)
        if path is None:
            raise CtlError(
                f"--token-file: none is given for {self.url}, expected a token of that machine's", Exit.USAGE
            )
        return path

    def path_of_target(self, target: str) -> tuple[str, str]:
        """Return kind ("instances" or "nodes") and id of what an operator named."""
        if target.startswith("node/"):
            return "nodes", target.removeprefix("node/")
        try:
            self.api.instance(target)
        except CtlError as error:
            if error.code is not Exit.REFUSED:
                raise
            try:
                self.api.node(target)
            except CtlError:
                raise CtlError(f"there is no instance and no node {target!r}", Exit.REFUSED) from None
            return "nodes", target
        return "instances", target

    def post(
        self, target: str, verb: str, body: dict[str, Any] | None = None
    ) -> tuple[str, str, dict[str, Any]]:
        """Send a command to an instance or a node; returns its kind, its id, and the answer: itself."""
        kind, target_id = self.path_of_target(target)
        return kind, target_id, self.api.command("POST", path_of(kind, target_id, verb), body)


def session_of(context: typer.Context) -> Session:
    """Return the session that the options before the command describe."""
    session: Session = context.find_root().obj
    return session


def print_items(items: Sequence[BaseModel], table: Table, *, as_json: bool) -> None:
    """Print a list as a table, or as a JSON array."""
    if as_json:
        print_json([item.model_dump(mode="json") for item in items])
    else:
        show(table)


def print_json(value: Any) -> None:
    """Print a value for programs."""
    typer.echo(json.dumps(value, indent=2))


def tell(message: str) -> None:
    """Say how it goes, beside what is printed for others to read."""
    typer.echo(message, err=True)
