"""llumnix-tui in tmux against a real cluster: true values, and a drain and a priority by keys alone."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.guarded import ask_in_turn, full, rows
from tests.e2e.running import RunningCluster, wait_for
from tests.e2e.streams import Stream, row_of
from tests.e2e.terminal import Terminal, terminal

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
SIZES = [(80, 24), (120, 40)]
TOKENS = 4000
# Of a request's id, in the narrowest column that it is shown in.
SHOWN_OF_AN_ID = 12


@contextlib.contextmanager
def window_of(
    cluster: RunningCluster, directory: Path, size: tuple[int, int] = SIZES[0]
) -> Iterator[Terminal]:
    """llumnix-tui, which shows a cluster."""
    token = cluster.state_dir / "admin.token"
    with terminal(directory, ["--url", cluster.admin_url, "--token-file", str(token)], size) as window:
        window.wait_for("● live")
        yield window


def load_of(cluster: RunningCluster, instance: str) -> str:
    """An instance's running and waiting requests as the screens show them."""
    now = cluster.instances()[instance]
    return f" {now['running']}/{now['waiting']} "


def set_priority_high(window: Terminal, request: str) -> None:
    """Find a request by the beginning of its id, and give it the most important class."""
    window.press("2", "/")
    window.type(request)
    window.press("Enter")
    window.wait_for("requests 1 of")
    window.press("r")
    window.wait_for("Set the priority of")
    # The classes stand in order of importance, and the first one is chosen already.
    window.press("Right", "Enter")


@pytest.fixture(params=SIZES, ids=["80x24", "120x40"])
def window(
    cluster: RunningCluster, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Terminal]:
    with window_of(cluster, tmp_path_factory.mktemp("window"), request.param) as window:
        yield window


@pytest.fixture
def load(cluster: RunningCluster) -> Iterator[list[Stream]]:
    """Six requests that run for as long as a test looks at them."""
    streams = [Stream(cluster, TOKENS) for _ in range(6)]
    wait_for(lambda: all(stream.chunks for stream in streams), 60, "all streams run")
    yield streams
    for stream in streams:
        stream.close()
        stream.join(60)


def test_every_screen_shows_true_values(
    window: Terminal, cluster: RunningCluster, load: list[Stream]
) -> None:
    window.wait_for("● serving")
    for item in ("i0", "i1"):
        wait_for(lambda i=item: window.shows(i, "● running", load_of(cluster, i)), 60, f"the load of {item}")
    window.press("2")
    for stream in load:
        row = row_of(cluster, stream)
        window.wait_for(row["id"][:SHOWN_OF_AN_ID], row["instance"], row["priority"], "● running")
    row = row_of(cluster, load[0])
    here, there = ("i0", "i1") if row["instance"] == "i0" else ("i1", "i0")
    cluster.admin("POST", f"/v1/requests/{row['id']}/migrate", json={"to": there})
    window.press("3")
    window.wait_for("✔ committed", row["id"][:SHOWN_OF_AN_ID], f"{here}>{there}")
    window.press("4")
    window.wait_for("migration.committed", "moved in")
    window.press("1", "g", "Enter")
    window.wait_for("[requests")
    wait_for(lambda: window.shows("normal", load_of(cluster, "i0")), 60, "the load of i0 on its own screen")


def test_a_drain_by_keys_moves_all_and_ends_in_safe_to_remove(
    window: Terminal, cluster: RunningCluster, load: list[Stream]
) -> None:
    wait_for(lambda: cluster.instances()["i0"]["running"] > 0, 30, "requests run on i0")
    moving = [row["id"] for row in map(partial(row_of, cluster), load) if row["instance"] == "i0"]
    window.wait_for("● running")
    try:
        window.press("g", "d")
        window.wait_for("Drain instance i0?")
        window.press("Right", "Enter")
        screen = window.wait_for("✔ safe to remove")
        assert "requests left 0" in screen
        assert cluster.instances()["i0"]["safe_to_remove"]
        for request in moving:
            window.wait_for(request[:SHOWN_OF_AN_ID], "✔ committed")
        assert "aborted 0" in window.screen()
        moved = cluster.instances()["i0"]["drain"]["moved"]
        assert moved >= len(moving)
        window.wait_for(f"moved {moved} ")
        pairs = cluster.admin("GET", "/v1/migration-totals")["pairs"]
        totals = cluster.admin("GET", "/v1/cluster")["totals"]
        assert sum(pair["committed"] for pair in pairs) == totals["migrations_committed"] >= moved
        for stream in load:
            stream.assert_undisturbed(120)
        window.press("Escape")
        window.wait_until_gone("✔ safe to remove")
        window.press("u")
        window.wait_for("Uncordon instance i0?")
        window.press("Right", "Enter")
        wait_for(lambda: cluster.instances()["i0"]["state"] == "running", 30, "i0 takes requests again")
    finally:
        cluster.admin_response("POST", "/v1/instances/i0/uncordon")


def test_a_priority_set_by_keys_shows_in_the_api(
    window: Terminal, cluster: RunningCluster, load: list[Stream]
) -> None:
    request = row_of(cluster, load[-1])["id"]
    set_priority_high(window, request[:SHOWN_OF_AN_ID])
    wait_for(lambda: row_of(cluster, load[-1])["priority"] == "high", 60, "the API shows the new class")
    window.wait_for(request[:SHOWN_OF_AN_ID], "high")


def test_a_priority_set_by_keys_moves_a_request_up_the_queue(
    one_instance: RunningCluster, tmp_path: Path
) -> None:
    with window_of(one_instance, tmp_path) as window, full(one_instance) as seats:
        asked = ask_in_turn(one_instance, "first", "second", "urgent")
        set_priority_high(window, "cmpl-urgent")
        wait_for(lambda: rows(one_instance, "cmpl-urgent")[0]["priority"] == "high", 60, "the API shows it")
        seats[0].close()
        assert [ask.status() for ask in asked] == [200] * 3
        in_turn = sorted(asked, key=lambda ask: ask.ended_at)
        assert [ask.response_id for ask in in_turn] == ["cmpl-urgent", "cmpl-first", "cmpl-second"]


def test_a_daemon_that_is_silent_is_shown_as_disconnected_until_it_answers(
    window: Terminal, cluster: RunningCluster
) -> None:
    window.press("1")
    window.wait_for("● serving")
    # A daemon that is stopped (SIGSTOP) answers as little as one that is gone, and keeps the cluster.
    cluster.process.send_signal(signal.SIGSTOP)
    try:
        assert "i0" in window.wait_for("✖ disconnected")
    finally:
        cluster.process.send_signal(signal.SIGCONT)
    window.wait_for("● live")
