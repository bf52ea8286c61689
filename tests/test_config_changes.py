"""What of a changed file a running cluster takes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from llumnix.config import changed, digests, parse_config, reloaded
from llumnix.config.changes import AT_RUN_TIME
from llumnix.errors import ConfigError

RUNNING = parse_config({"instances": {"count": 2}, "http": {"api_keys": [{"name": "a", "key": "k"}]}})


def test_what_can_change_does_and_the_rest_is_named() -> None:
    wanted = parse_config(
        {
            "instances": {"count": 2, "restart_limit": 9},
            "http": {"drain_timeout_s": 5.0, "max_queued": 3},
            "scheduler": {"llumnix+": {"migrate_in_threshold": 9.0}, "policy": "load"},
        }
    )
    config, taken, others = reloaded(RUNNING, wanted)
    assert taken == [
        "http.drain_timeout_s",
        "instances.restart_limit",
        "scheduler.llumnix+.migrate_in_threshold",
    ]
    assert others == ["http.api_keys", "http.max_queued", "scheduler.policy"]
    assert (config.http.drain_timeout_s, config.http.max_queued) == (5.0, None)
    assert config.scheduler.llumnix_plus.migrate_in_threshold == 9.0
    assert config.scheduler.policy == RUNNING.scheduler.policy
    assert config.http.api_keys == RUNNING.http.api_keys


def test_the_same_file_changes_nothing() -> None:
    assert reloaded(RUNNING, RUNNING) == (RUNNING, [], [])


def test_what_does_not_go_with_the_running_cluster_is_refused() -> None:
    wanted = parse_config({"instances": {"count": 5, "min": 5}})
    with pytest.raises(ConfigError, match=r"instances\.min"):
        reloaded(RUNNING, wanted)


def test_a_key_in_a_file_counts_by_what_the_file_holds(tmp_path: Path) -> None:
    file = tmp_path / "key"
    config = parse_config({"http": {"api_keys": [{"name": "a", "key_file": str(file)}]}})
    file.write_text("one")
    before = digests(config)
    file.write_text("two")
    assert changed(before, digests(config)) == ["http.api_keys"]


def test_every_setting_that_can_change_exists() -> None:
    keys = digests(RUNNING)
    for name in AT_RUN_TIME:
        assert any(key == name or key.startswith(f"{name}.") for key in keys), name
