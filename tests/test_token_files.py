"""Where clients look for the admin token is where llumnixd keeps it, by default and as a system service."""

import os
from pathlib import Path

import pytest

from llumnix.admin import schema
from llumnix.config import ClusterConfig, load_config, parse_config
from llumnix.progress import dashboard_command
from llumnix_tui.cli import find_token

REPO = Path(__file__).resolve().parent.parent


def test_the_default_token_files_are_those_of_the_configurations() -> None:
    own, service = (Path(path).expanduser() for path in schema.TOKEN_FILES)
    assert own == ClusterConfig().state_dir / "admin.token"
    assert service == load_config(REPO / "systemd/cluster.toml").cluster.state_dir / "admin.token"


def test_the_services_token_is_taken_where_there_is_no_own_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, service = tmp_path / "own.token", tmp_path / "service.token"
    monkeypatch.setattr(schema, "TOKEN_FILES", (str(own), str(service)))
    assert schema.default_token_file(schema.DEFAULT_URL) == own
    service.write_text("service-secret\n")
    assert schema.default_token_file(schema.DEFAULT_URL) == service
    with monkeypatch.context() as unreadable:
        unreadable.setattr(os, "access", lambda path, mode: False)
        assert schema.default_token_file("http://localhost:1") == own
    own.write_text("own-secret\n")
    assert schema.default_token_file("http://[::1]:1") == own


def test_this_machines_token_is_not_sent_to_another() -> None:
    assert schema.default_token_file("http://10.0.0.2:8001") is None
    assert find_token("http://head:8001", None) is None
    config = parse_config({"model": {"path": "builtin:tiny"}, "admin": {"host": "10.0.0.1"}})
    assert "--token-file" in dashboard_command(config)


def test_llumnixd_names_the_dashboards_command_with_the_options_it_needs(tmp_path: Path) -> None:
    model = {"path": "builtin:tiny"}
    assert dashboard_command(parse_config({"model": model})) == "llumnix-tui"
    elsewhere = parse_config(
        {"model": model, "cluster": {"state_dir": str(tmp_path)}, "admin": {"port": 9001}}
    )
    assert (
        dashboard_command(elsewhere)
        == f"llumnix-tui --url http://127.0.0.1:9001 --token-file {tmp_path / 'admin.token'}"
    )
