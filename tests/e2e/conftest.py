"""Clusters for all tests that leave them as they found them; each is started when first asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.guarded import guarded_settings
from tests.e2e.running import RunningCluster, running, settings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All but the smoke tests keep both cores busy for minutes and are run by hand, on a quiet machine."""
    for item in items:
        if "e2e" in item.path.parts and item.path.name != "test_smoke.py":
            item.add_marker(pytest.mark.load)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Two instances, one API server, nothing else set."""
    directory = tmp_path_factory.mktemp("cluster")
    with running(settings(directory / "state"), directory) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Two instances of two seats each, two API servers, TLS, API keys, a bound for the queue."""
    directory = tmp_path_factory.mktemp("guarded")
    with running(guarded_settings(directory), directory) as cluster:
        yield cluster


@pytest.fixture
def one_instance(guarded: RunningCluster) -> Iterator[RunningCluster]:
    """The guarded cluster with one instance open, so that all requests share one queue."""
    guarded.admin("POST", "/v1/instances/i1/cordon")
    yield guarded
    guarded.admin("POST", "/v1/instances/i1/uncordon")
