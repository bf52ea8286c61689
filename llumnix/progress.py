"""What llumnixd shows: one line per instance while it loads, plain lines where there is no terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from llumnix.admin.schema import DEFAULT_URL, Instance, default_token_file
from llumnix.config import Config

_STYLES = {"running": "green", "failed": "red", "restarting": "yellow"}
_TOLD_AS_FAULTS = ("failed", "restarting")


class Progress:
    """Shows the instances until the cluster is ready, then only what changes."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._shown: dict[str, str] = {}

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def fault(self, target: str, message: str) -> None:
        """What went wrong, when it does: a state of a moment would be missed by who looks now and then."""
        self.say(f"{target.removeprefix('instance/')}: {message}")

    def show(self, instances: Sequence[Instance], *, starting: bool) -> None:
        """The state of things; on a terminal redrawn in place while the cluster starts."""
        if self._console.is_terminal and starting:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(_table(instances))
            return
        self._end_live()
        for instance in instances:
            line = _line(instance)
            if self._shown.get(instance.id) != line and instance.state not in _TOLD_AS_FAULTS:
                self._shown[instance.id] = line
                self.say(f"{instance.id}: {line}")

    def ready(self, config: Config, url: str, seconds: float) -> None:
        self._end_live()
        admin = _admin_url(config)
        self.say(f"ready after {seconds:.1f} s")
        self.say(f"  OpenAI API  {url}/v1   model {config.served_name}")
        self.say(f"  admin API   {admin}/v1   token in {config.cluster.state_dir / 'admin.token'}")
        self.say(f"  logs        {config.cluster.state_dir / 'logs'}")
        self.say(f"  look inside {dashboard_command(config)}")

    def close(self) -> None:
        self._end_live()

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def dashboard_command(config: Config) -> str:
    """The command that shows this cluster, with the options that its settings make necessary."""
    words, token_file = ["llumnix-tui"], config.cluster.state_dir / "admin.token"
    if _admin_url(config) != DEFAULT_URL:
        words += ["--url", _admin_url(config)]
    if token_file != default_token_file(_admin_url(config)):
        words += ["--token-file", str(token_file)]
    return shlex.join(words)


def _admin_url(config: Config) -> str:
    return f"http://{config.admin.host}:{config.admin.port}"


def _line(instance: Instance) -> str:
    detail = instance.stage or instance.reason
    return f"{instance.state} ({detail})" if detail else instance.state


def _table(instances: Sequence[Instance]) -> Table:
    table = Table.grid(padding=(0, 2))
    for instance in instances:
        seconds = f"{instance.started_s:.0f} s" if instance.started_s is not None else ""
        style = _STYLES.get(instance.state, "")
        table.add_row(
            instance.id,
            f"[{style}]{instance.state}[/]" if style else instance.state,
            seconds,
            _detail(instance),
        )
    return table


def _detail(instance: Instance) -> str:
    from rich.markup import escape

    return escape(instance.stage or instance.reason)
