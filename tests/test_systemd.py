"""The system service: what install.sh puts where, that systemd accepts it, and what it is told."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llumnix.config import load_config
from llumnix.systemd import notify, notify_reloading, watchdog_interval_s

REPO = Path(__file__).resolve().parent.parent
SERVICES = ("llumnix-engines.service", "llumnixd.service", "llumnixd-node.service")
UNITS = (*SERVICES, "llumnix.target")
MOST_EXPOSED = {"llumnix-engines.service": 3.5, "llumnixd.service": 2.0, "llumnixd-node.service": 3.5}
"""Of 10, by systemd-analyze. Engines need devices, and compile code."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


class Stage:
    """A directory that stands for / ."""

    def __init__(self, root: Path, prefix: Path) -> None:
        self.root = root
        self.prefix = prefix
        self.units = root / "etc/systemd/system"
        self.config = root / "etc/llumnix"

    def install(self, *options: str) -> str:
        command = [str(REPO / "install.sh"), "--prefix", str(self.prefix), *options]
        env = os.environ | {"DESTDIR": str(self.root)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def files(self) -> set[str]:
        return {str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_symlink() or p.is_file()}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """With the service installed for a llumnixd that can be run."""
    prefix = tmp_path / "venv"
    (prefix / "bin").mkdir(parents=True)
    program = prefix / "bin/llumnixd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    stage = Stage(tmp_path / "root", prefix)
    stage.install("--systemd")
    return stage


def setting(unit: Path, name: str) -> list[str]:
    """All values of a setting of a unit."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


def test_files_are_put_in_place_and_taken_away_again(stage: Stage) -> None:
    units = {f"etc/systemd/system/{unit}" for unit in UNITS}
    ours = {"etc/llumnix/cluster.toml", "etc/llumnix/node.toml", "var/lib/llumnix/logs"}
    assert stage.files() == units | ours
    assert "--purge" in stage.install("--uninstall")
    assert stage.files() == ours
    stage.install("--uninstall", "--purge")
    assert stage.files() == set()


def test_an_operators_configuration_survives_another_install(stage: Stage) -> None:
    (stage.config / "cluster.toml").write_text("# mine\n")
    stage.install("--systemd")
    assert (stage.config / "cluster.toml").read_text() == "# mine\n"


def test_nobody_else_can_read_state_logs_or_configuration(stage: Stage) -> None:
    for directory in ("etc/llumnix", "var/lib/llumnix", "var/log/llumnix"):
        assert (stage.root / directory).stat().st_mode & 0o007 == 0, directory


@pytest.mark.parametrize("unit", SERVICES)
def test_units_start_this_installation_as_their_own_user(stage: Stage, unit: str) -> None:
    path = stage.units / unit
    (start,) = setting(path, "ExecStart")
    program, _, file, *_ = start.split()
    assert program == str(stage.prefix / "bin/llumnixd")
    assert (stage.root / file.lstrip("/")).exists()
    assert not re.search("@[A-Z]+@", path.read_text())
    assert setting(path, "User") == ["llumnix"] and setting(path, "Type") == ["notify"]


@pytest.mark.parametrize("name", ["cluster", "node"])
def test_the_configurations_are_valid_and_lie_where_the_units_may_write(stage: Stage, name: str) -> None:
    config = load_config(stage.config / f"{name}.toml")
    assert config.cluster.state_dir == Path("/var/lib/llumnix")
    assert config.ray.temp_dir == Path("/run/llumnix")


def test_llumnixd_can_end_without_the_engines_and_the_appliance_ends_both(stage: Stage) -> None:
    daemon, engines = stage.units / "llumnixd.service", stage.units / "llumnix-engines.service"
    assert setting(daemon, "PartOf") == setting(engines, "PartOf") == ["llumnix.target"]
    assert setting(daemon, "Requires") == ["llumnix-engines.service"]
    assert not setting(engines, "(BindsTo|Requires|StopPropagatedFrom)")
    assert setting(daemon, "RuntimeDirectory") == [], "its end would remove the engines' sockets"


@needs_systemd
def test_systemd_finds_no_fault_with_the_units(stage: Stage) -> None:
    command = ["systemd-analyze", "verify", "--man=no", *(str(stage.units / unit) for unit in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_services_are_confined(stage: Stage, unit: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(stage.units / unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    exposure = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert exposure is not None, done.stdout + done.stderr
    assert float(exposure[1]) <= MOST_EXPOSED[unit]


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What systemd hears."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def test_systemd_is_told(heard: socket.socket) -> None:
    notify("READY=1", "STATUS=serving")
    assert heard.recv(100) == b"READY=1\nSTATUS=serving"
    notify_reloading()
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", heard.recv(100))


def test_an_abstract_socket_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        name = f"llumnix-test-{os.getpid()}"
        listener.bind(f"\0{name}")
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_without_systemd_nothing_is_told_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
    ],
    ids=["none", "ours", "another's", "ours by pid"],
)
def test_the_watchdog_is_fed_twice_in_its_time(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], interval_s: float | None
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert watchdog_interval_s() == interval_s
