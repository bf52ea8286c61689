"""When llumnixd gives a start up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from llumnix.cluster.api_server_pool import ApiServerState
from llumnix.config import parse_config
from llumnix.daemon import _raise_if_hopeless
from llumnix.errors import ConfigError, StartupError


def look_at(api_server: ApiServerState, *instances: tuple[str, str]) -> None:
    """`instances`: (state, reason) of each."""
    manager: Any = SimpleNamespace(
        config=parse_config({"instances": {"restart_limit": 2}}),
        api_servers=SimpleNamespace(states=[ApiServerState(0), api_server]),
    )
    control: Any = SimpleNamespace(
        instances=lambda: [SimpleNamespace(state=s, reason=r) for s, r in instances]
    )
    _raise_if_hopeless(manager, control)


def test_a_start_goes_on_while_something_may_still_come_of_it() -> None:
    look_at(
        ApiServerState(1, failures=2, reason="its process died"),
        ("failed", "x"),
        ("restarting", "its process died"),
    )


def test_an_api_server_that_dies_more_often_in_a_row_than_an_instance_may_ends_the_start() -> None:
    with pytest.raises(StartupError, match=r"^API server 1 could not be started: OSError: no$"):
        look_at(ApiServerState(1, failures=3, reason="OSError: no"), ("running", ""))


def test_a_wrong_setting_ends_the_start_at_the_first_attempt() -> None:
    with pytest.raises(ConfigError, match=r"^a\.b = 1 is not valid: expected 2\.$"):
        look_at(
            ApiServerState(1),
            ("restarting", "ConfigError: a.b = 1 is not valid: expected 2.; restarts in 1.0 s"),
        )
