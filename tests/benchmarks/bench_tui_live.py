"""How long after a change in the admin API's truth llumnix-tui shows it, on a live simulated cluster.

python -m tests.benchmarks.bench_tui_live [--repeats 20] [--instances 4] [--requests 24] [--size 120x40]
The real program in tmux. A change is true from the time that the API itself tells (an event, a migration's
end), or else when a poll of the API sees it first. Bar: shown within 1 s, the worst one too.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
import threading
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llumnix_tui.render.values import clock_time
from tests.benchmarks.live import verdict
from tests.benchmarks.peer import unwind_on_sigterm
from tests.e2e.running import RunningCluster, running, settings
from tests.e2e.streams import Unread
from tests.e2e.terminal import REPO, Terminal, terminal

BAR_S = 1.0
POLL_S = 0.02
TIMEOUT_S = 30.0
SHOWN_OF_AN_ID = 12
TOKENS = 6_000
"""Of an answer: more than come while a round takes."""

Truth = Callable[[], float | None]
"""The Unix time since when something is true, or None while it is not."""
Shown = Callable[[float], tuple[str, ...]]
"""What one line of the screen then shows, of what is true since a time."""


class Bench:
    """One screen after the other, and the delays by what changed."""

    def __init__(self, cluster: RunningCluster, window: Terminal, rng: random.Random) -> None:
        self._cluster, self._window, self._rng = cluster, window, rng
        self._numbers = itertools.count()
        self.delays_s: dict[str, list[float]] = defaultdict(list)

    def cordons(self, instance: str) -> None:
        """On the cluster's screen: an instance is cordoned, and open again."""
        self._show("1", "● serving")
        self._change_state(instance, "cordon", "cordoned", "◐ cordoned")
        self._change_state(instance, "uncordon", "running", "● running")

    def _change_state(self, instance: str, action: str, state: str, shown: str) -> None:
        self._pause()
        self._measure(
            "cluster: an instance's state",
            lambda: self._cluster.admin("POST", f"/v1/instances/{instance}/{action}"),
            _since(lambda: self._cluster.instances()[instance]["state"] == state),
            lambda _: (instance, shown),
        )

    def start(self) -> None:
        """On the requests' screen: a request has come."""
        self._show("2", "requests")
        with self._asked("requests: a request's start"):
            pass

    def start_on(self, instance: str) -> None:
        """On an instance's own screen: a request has come there."""
        others = [name for name in self._cluster.instances() if name != instance]
        with self._cluster.cordoned(*others):
            self._show("1", "● serving")
            self._window.press("g", "Enter")
            self._window.wait_for("[requests")
            with self._asked("instance: a request's start"):
                pass
        self._window.press("1")

    def end_of_a_move(self) -> None:
        """On the migrations' screen."""
        with self._asked() as request:
            self._show("3", "under way")
            self._move(
                request,
                "migrations: a migration's end",
                lambda: next((m["ended_at"] for m in self._moves() if m["request"] == request), None),
                lambda _: (request[:SHOWN_OF_AN_ID], "✔ committed"),
            )

    def event(self) -> None:
        """On the events' screen, by the event's time of day."""
        with self._asked() as request:
            self._show("4", "SEVERITY")
            self._move(
                request,
                "events: an event",
                lambda: next((e["time"] for e in self._events() if request in e["target"]), None),
                lambda at: (clock_time(at), "migration.committed"),
            )

    def _move(self, request: str, what: str, truth: Truth, shown: Shown) -> None:
        self._pause()
        path = f"/v1/requests/{request}/migrate"
        self._measure(what, lambda: self._cluster.admin("POST", path, json={}), truth, shown)

    def _moves(self) -> list[dict[str, Any]]:
        return self._cluster.migrations("committed")

    def _events(self) -> list[dict[str, Any]]:
        newest = self._cluster.admin("GET", "/v1/events?order=desc&limit=20")["items"]
        return [event for event in newest if event["kind"] == "migration.committed"]

    @contextmanager
    def _asked(self, what: str | None = None) -> Iterator[str]:
        """A request under way, its start measured if `what` says so; its id."""
        name = f"t{next(self._numbers):05d}"

        def rows() -> list[str]:
            return [row["id"] for row in self._cluster.requests() if row["response_id"] == f"cmpl-{name}"]

        self._pause()
        made: list[Unread] = []
        self._measure(
            what,
            lambda: made.append(Unread(self._cluster, name, TOKENS)),
            _since(lambda: bool(rows())),
            lambda _: (f"cmpl-{name}"[:SHOWN_OF_AN_ID],),
        )
        yield rows()[0]
        made[0].close()

    def _measure(self, what: str | None, change: Callable[[], object], truth: Truth, shown: Shown) -> None:
        """Without `what` it is only waited until it is true."""
        known: Future[float] = Future()
        threading.Thread(target=lambda: known.set_result(_first(truth)), daemon=True).start()
        change()
        true_at = known.result(TIMEOUT_S)
        if what is not None:
            try:
                seen_at = _first(_since(lambda: self._window.shows(*shown(true_at))))
            except AssertionError as error:
                raise AssertionError(
                    f"{what}: {error}: {shown(true_at)} in\n{self._window.screen()}"
                ) from None
            self.delays_s[what].append(max(seen_at - true_at, 0.0))

    def _show(self, key: str, text: str) -> None:
        self._window.press(key)
        self._window.wait_for(text)

    def _pause(self) -> None:
        """Out of step with the program's own rounds."""
        time.sleep(self._rng.uniform(0.5, 1.5))


def _since(holds: Callable[[], bool]) -> Truth:
    """True from the moment at which the question is asked that finds it so."""

    def now() -> float | None:
        asked_at = time.time()
        return asked_at if holds() else None

    return now


def _first(truth: Truth) -> float:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if (at := truth()) is not None:
            return at
        time.sleep(POLL_S)
    raise AssertionError(f"not within {TIMEOUT_S:g} s")


def simulated(directory: Path, num_instances: int) -> dict[str, Any]:
    """configs/simulated.toml with ports and a state of its own; it moves nothing by itself."""
    config = tomllib.loads((REPO / "configs/simulated.toml").read_text())
    made = settings(directory / "state", scheduler={"rescheduling": False})
    return {**made, **config, "instances": {**config["instances"], "count": num_instances}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--requests", type=int, default=24, help="that run all the time")
    parser.add_argument("--size", default="120x40")
    args = parser.parse_args()
    unwind_on_sigterm()
    columns, rows = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory(prefix="llumnix-bench-") as place:
        directory = Path(place)
        with running(simulated(directory, args.instances), directory) as cluster:
            load = [Unread(cluster, f"load-{k}", TOKENS) for k in range(args.requests)]
            token = cluster.state_dir / "admin.token"
            arguments = ["--url", cluster.admin_url, "--token-file", str(token)]
            with terminal(directory, arguments, (columns, rows)) as window:
                window.wait_for("● live")
                bench = Bench(cluster, window, random.Random(1))
                for number in range(args.repeats):
                    bench.cordons(f"i{number % args.instances}")
                    bench.start()
                    bench.start_on("i0")
                    bench.end_of_a_move()
                    bench.event()
            for one in load:
                one.close()
    for what, delays_s in bench.delays_s.items():
        print(
            f"{what:30} shown after: median {statistics.median(delays_s):.2f} s  worst {max(delays_s):.2f} s"
            f"  (n={len(delays_s)}; bar {BAR_S:g} s: {verdict(max(delays_s) <= BAR_S)})"
        )


if __name__ == "__main__":
    main()
