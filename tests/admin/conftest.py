"""A real admin server on a free loopback port, and clients with and without tokens."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from llumnix.admin.journal import Journal
from llumnix.admin.server import AdminServer
from llumnix.admin.tokens import Token, TokenBook
from tests.admin.fake_cluster import FakeCluster, as_control

OPERATOR = Token("ops", "operator", "operator-secret")
VIEWER = Token("dash", "viewer", "viewer-secret")


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    path = tmp_path / "logs"
    path.mkdir()
    return path


@pytest.fixture
async def server(cluster: FakeCluster, journal: Journal, log_dir: Path) -> AsyncIterator[AdminServer]:
    tokens = TokenBook([OPERATOR, VIEWER])
    server = AdminServer(as_control(cluster), journal, tokens, log_dir, port=0, keep_alive_s=0.2)
    await server.start()
    yield server
    await server.stop()


def client_of(server: AdminServer, token: Token | None) -> httpx.AsyncClient:
    headers = {} if token is None else {"Authorization": f"Bearer {token.secret}"}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30, trust_env=False, verify=False)


@pytest.fixture
async def operator(server: AdminServer) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(server, OPERATOR) as client:
        yield client


@pytest.fixture
async def viewer(server: AdminServer) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(server, VIEWER) as client:
        yield client


@pytest.fixture
async def stranger(server: AdminServer) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(server, None) as client:
        yield client
