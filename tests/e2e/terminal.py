"""llumnix-tui in a tmux of its own: keys in, the screen's text out."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.e2e.running import wait_for

REPO = Path(__file__).resolve().parent.parent.parent
SHOWN_TIMEOUT_S = 60.0
# Terminals of a busy machine were seen to stand still for 20 s.
TMUX_TIMEOUT_S = 120.0


class Terminal:
    """One tmux server with one window."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def press(self, *keys: str) -> None:
        """Type keys by tmux's names."""
        self._tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        """Type a text."""
        self._tmux("send-keys", "-l", text)

    def screen(self) -> str:
        """What the window shows."""
        return self._tmux("capture-pane", "-p")

    def wait_for(self, *texts: str, timeout_s: float = SHOWN_TIMEOUT_S) -> str:
        """Wait until one line of the window shows all of these texts; the screen."""
        try:
            wait_for(lambda: self.shows(*texts), timeout_s, " ".join(texts))
        except AssertionError as error:
            raise AssertionError(f"not within {timeout_s:g} s: {texts} in\n{self.screen()}") from error
        return self.screen()

    def shows(self, *texts: str) -> bool:
        """Whether one line of the window shows all of these texts."""
        return any(all(text in line for text in texts) for line in self.screen().splitlines())

    def wait_until_gone(self, text: str, timeout_s: float = SHOWN_TIMEOUT_S) -> None:
        """Wait until the window no longer shows a text. To be called after Escape, before further keys:
        what follows Escape at once is one key with it."""
        wait_for(lambda: text not in self.screen(), timeout_s, f"{text} is gone")

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TMUX_TIMEOUT_S)
        return done.stdout


@contextlib.contextmanager
def terminal(directory: Path, arguments: Sequence[str], size: tuple[int, int]) -> Iterator[Terminal]:
    """Run llumnix-tui in a window of this size; both are gone afterwards."""
    socket = directory / "tmux"
    program = [sys.executable, "-c", "from llumnix_tui.cli import main; main()", *arguments]
    path = os.pathsep.join((str(REPO), str(REPO / "tui")))
    window = ["new-session", "-d", "-x", str(size[0]), "-y", str(size[1]), "-e", f"PYTHONPATH={path}", "--"]
    subprocess.run(
        ["tmux", "-S", str(socket), "-f", "/dev/null", *window, *program],
        check=True,
        timeout=TMUX_TIMEOUT_S,
        env={**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
    )
    try:
        yield Terminal(socket)
    finally:
        subprocess.run(["tmux", "-S", str(socket), "kill-server"], check=False, timeout=TMUX_TIMEOUT_S)
