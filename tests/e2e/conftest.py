"""Clusters for all tests that leave them as they found them; each is started when first asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.guarded import guarded_settings
from tests.e2e.running import RunningCluster, running, settings, wait_until_idle

# They share two clusters, and passed again and again on a machine that had far too much to do.
IN_EVERY_RUN = {"test_admin_live", "test_dispatch", "test_listening", "test_migration", "test_openai"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes for a few tests is run by hand."""
    for item in items:
        if "e2e" in item.path.parts and item.path.stem not in IN_EVERY_RUN:
            item.add_marker(pytest.mark.load)


@pytest.fixture(scope="package")
def plain_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Two instances, one API server, nothing else set."""
    directory = tmp_path_factory.mktemp("cluster")
    with running(settings(directory / "state"), directory) as cluster:
        yield cluster


@pytest.fixture
def cluster(plain_cluster: RunningCluster) -> RunningCluster:
    """The plain cluster; what the test before has left of requests is gone."""
    wait_until_idle(plain_cluster)
    return plain_cluster


@pytest.fixture(scope="package")
def guarded_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Two instances of two seats each, two API servers, TLS, API keys, a bound for the queue."""
    directory = tmp_path_factory.mktemp("guarded")
    with running(guarded_settings(directory), directory) as cluster:
        yield cluster


@pytest.fixture
def guarded(guarded_cluster: RunningCluster) -> RunningCluster:
    """The guarded cluster, idle."""
    wait_until_idle(guarded_cluster)
    return guarded_cluster


@pytest.fixture
def one_instance(guarded: RunningCluster) -> Iterator[RunningCluster]:
    """The guarded cluster with one instance open, so that all requests share one queue."""
    with guarded.cordoned("i1"):
        yield guarded
