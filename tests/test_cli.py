"""The command llumnixd: exit codes and what is printed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tomli

import llumnix
from llumnix.cluster import leftovers
from llumnix.cluster.ray_node import RayNode

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.toml"


def llumnixd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llumnix.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_wrong_configuration_ends_with_code_2_and_one_sentence_on_stderr(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text("[instances]\ncuont = 3\n")
    result = llumnixd("--config", str(path))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "instances.cuont = 3 is not a known key: did you mean instances.count?\n"


def test_a_missing_file_ends_with_code_2() -> None:
    result = llumnixd("--config", "/no/such/file.toml")
    assert result.returncode == 2
    assert (
        result.stderr
        == "/no/such/file.toml cannot be read (No such file or directory): expected a TOML file.\n"
    )


def test_a_machine_is_the_head_or_joins_one() -> None:
    result = llumnixd("--config", str(QUICKSTART), "--head", "--join")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("--join and --head are for different machines")


def test_the_version_is_printed() -> None:
    assert llumnixd("--version").stdout == f"llumnixd {llumnix.__version__}\n"


def test_help_names_every_option() -> None:
    text = llumnixd("--help").stdout
    assert all(option in text for option in ("--config", "--check", "--join", "--head", "--version"))


def test_check_prints_the_effective_configuration_as_toml_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    path = tmp_path / "checked.toml"
    path.write_text(QUICKSTART.read_text() + "\n" + ports())
    result = llumnixd("--config", str(path), "--check")
    assert (result.returncode, result.stderr.count("Traceback")) == (0, 0), result.stderr
    shown = tomli.loads(result.stdout)
    assert shown["engine"]["kv_cache_memory_bytes"] == "256M"
    assert (shown["instances"]["min"], shown["instances"]["max"]) == (1, 4)


def test_check_takes_what_the_running_cluster_itself_has_for_free(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    run = leftovers.new_run()
    path = tmp_path / "running.toml"
    with socket.socket() as taken, raylet_of(run.run_id) as raylet:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        path.write_text(
            f'[cluster]\nstate_dir = "{tmp_path}"\n[http]\nport = {taken.getsockname()[1]}\n'
            '[engine]\nkv_cache_memory_bytes = "900T"\n'
        )
        assert "expected a free port" in llumnixd("--config", str(path), "--check").stderr
        node = RayNode("", "127.0.0.1", "", tmp_path, tmp_path, run.run_id, raylet.pid, None)
        leftovers.record_run(tmp_path, replace(run, node=node.to_json()))
        result = llumnixd("--config", str(path), "--check")
        assert result.returncode == 0, result.stderr


def test_check_of_a_joining_machine_looks_only_at_what_joining_uses(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    path = tmp_path / "joining.toml"
    path.write_text(
        f'[cluster]\nstate_dir = "{tmp_path}"\n[ray]\naddress = "127.0.0.1:6379"\n'
        '[http]\ntls_cert = "/on/the/head.pem"\ntls_key = "/on/the/head.key"\n'
    )
    result = llumnixd("--config", str(path), "--check", "--join")
    assert (result.returncode, result.stdout) == (2, "") and "copy ray.token from the head" in result.stderr
    (tmp_path / "ray.token").touch(mode=0o600)
    (tmp_path / "ray.token").write_text("hush")
    result = llumnixd("--config", str(path), "--check", "--join")
    assert result.returncode == 0, result.stderr
    assert tomli.loads(result.stdout)["ray"]["address"] == "127.0.0.1:6379"


@contextlib.contextmanager
def raylet_of(run_id: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that passes for the raylet of a run."""
    process = subprocess.Popen(["sleep", "300"], env={**os.environ, leftovers.RUN_ID_VARIABLE: run_id})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ports() -> str:
    """Two free ports as a piece of configuration, so that a cluster on this machine is not in the way."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return f"[http]\nport = {one.getsockname()[1]}\n[admin]\nport = {other.getsockname()[1]}\n"
