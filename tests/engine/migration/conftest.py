"""Engines are built once: in one process a pair takes a second, importing vLLM twenty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llumnix.engine import tiny_model
from tests.engine.migration.lab import Lab


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.build(tmp_path_factory.mktemp("tiny"))


PairBuilder = Callable[..., tuple[Lab, Lab]]


@pytest.fixture(scope="session")
def build_pair(model_dir: Path) -> Iterator[PairBuilder]:
    """Builds engines that live until the session ends: shutting one down takes the others' groups with it."""
    built: list[Lab] = []

    def build(**arguments: Any) -> tuple[Lab, Lab]:
        pair = Lab(model_dir, **arguments), Lab(model_dir, **arguments)
        built.extend(pair)
        return pair

    yield build
    for lab in built:
        lab.engine.shutdown()


@pytest.fixture(scope="session")
def _sync_labs(build_pair: PairBuilder) -> tuple[Lab, Lab]:
    return build_pair()


@pytest.fixture(scope="session")
def _async_labs(build_pair: PairBuilder) -> tuple[Lab, Lab]:
    return build_pair(force_async=True)


@pytest.fixture
def labs(_sync_labs: tuple[Lab, Lab]) -> tuple[Lab, Lab]:
    """Two engines with vLLM's scheduler, empty."""
    for lab in _sync_labs:
        lab.reset()
    return _sync_labs


@pytest.fixture
def async_labs(_async_labs: tuple[Lab, Lab]) -> tuple[Lab, Lab]:
    """Two engines with vLLM's asynchronous scheduler, empty."""
    for lab in _async_labs:
        lab.reset()
    return _async_labs


@pytest.fixture(params=["sync", "async"])
def any_labs(request: pytest.FixtureRequest) -> tuple[Lab, Lab]:
    """Both kinds in turn."""
    pair: tuple[Lab, Lab] = request.getfixturevalue("labs" if request.param == "sync" else "async_labs")
    return pair
