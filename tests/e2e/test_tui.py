"""llumnix-tui in tmux against a real cluster: true values, and a drain and a priority by keys alone."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator

import pytest

from tests.e2e.running import RunningCluster, wait_for
from tests.e2e.streams import Stream, row_of
from tests.e2e.terminal import Terminal, terminal

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
SIZES = [(80, 24), (120, 40)]
TOKENS = 4000


@pytest.fixture(params=SIZES, ids=["80x24", "120x40"])
def window(
    cluster: RunningCluster, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Terminal]:
    token = cluster.state_dir / "admin.token"
    arguments = ["--url", cluster.admin_url, "--token-file", str(token)]
    with terminal(tmp_path_factory.mktemp("window"), arguments, request.param) as window:
        window.wait_for("● live")
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
    screen = window.wait_for("● serving")
    assert "i0" in screen and "i1" in screen
    window.press("2")
    for stream in load:
        window.wait_for(row_of(cluster, stream)["id"][:12])
    request = row_of(cluster, load[0])["id"]
    other = "i1" if row_of(cluster, load[0])["instance"] == "i0" else "i0"
    cluster.admin("POST", f"/v1/requests/{request}/migrate", json={"to": other})
    window.press("3")
    window.wait_for("✔ committed")
    window.press("4")
    window.wait_for("migration.committed")
    window.press("1", "Enter")
    screen = window.wait_for("[requests")
    assert "KV" in screen and "freeness" in screen


def test_a_drain_by_keys_moves_all_and_ends_in_safe_to_remove(
    window: Terminal, cluster: RunningCluster, load: list[Stream]
) -> None:
    wait_for(lambda: cluster.instances()["i0"]["running"] > 0, 30, "requests run on i0")
    window.wait_for("● running")
    try:
        window.press("g", "d")
        window.wait_for("Drain instance i0?")
        window.press("Right", "Enter")
        screen = window.wait_for("✔ safe to remove", timeout_s=60)
        assert "requests left 0" in screen
        assert "aborted 0" in screen
        assert cluster.instances()["i0"]["safe_to_remove"]
        assert "✔ committed" in screen
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
    window.press("2", "/", *request[:12], "Enter")
    window.wait_for("requests 1 of")
    window.press("r")
    window.wait_for("Set the priority of")
    classes = [item["name"] for item in cluster.admin("GET", "/v1/cluster")["priorities"]]
    window.press(*["j"] * classes.index("high"), "Right", "Enter")
    wait_for(lambda: row_of(cluster, load[-1])["priority"] == "high", 20, "the API shows the new class")
    window.wait_for("high")


def test_a_daemon_that_is_silent_is_shown_as_disconnected_until_it_answers(
    window: Terminal, cluster: RunningCluster
) -> None:
    window.press("1")
    window.wait_for("● serving")
    # A daemon that is stopped (SIGSTOP) answers as little as one that is gone, and keeps the cluster.
    cluster.process.send_signal(signal.SIGSTOP)
    try:
        window.wait_for("✖ disconnected", timeout_s=40)
        assert "i0" in window.screen()
    finally:
        cluster.process.send_signal(signal.SIGCONT)
    window.wait_for("● live", timeout_s=40)
