"""The admin API as an ASGI app: gate, routes, error answers and their OpenAPI description."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from llumnix import __version__
from llumnix.admin.answers import install_handlers
from llumnix.admin.cluster_logs import ClusterLogs
from llumnix.admin.command_routes import commands
from llumnix.admin.control import ClusterControl
from llumnix.admin.gate import Gate
from llumnix.admin.journal import Journal
from llumnix.admin.logs import LogDir
from llumnix.admin.metrics import build_registry
from llumnix.admin.paging import Listing
from llumnix.admin.rates import RateLimit
from llumnix.admin.read_routes import lists, probes, single
from llumnix.admin.routes import Surroundings
from llumnix.admin.sse import KEEP_ALIVE_S, EventFeed
from llumnix.admin.support_routes import support
from llumnix.admin.tokens import TokenBook


def build_app(
    control: ClusterControl,
    journal: Journal,
    tokens: TokenBook,
    log_dir: Path,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> FastAPI:
    """Return the app; all of it runs on one event loop, that of `control`."""
    feed = EventFeed(journal, keep_alive_s)
    app = FastAPI(
        title="Llumnix admin API",
        version=__version__,
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    registry = build_registry(control, journal)
    requests = Listing(control.requests, lambda request: [request.arrived_at, request.id])
    logs = ClusterLogs(LogDir(log_dir), control)
    app.state.surroundings = Surroundings(control, journal, feed, registry, logs, requests)
    for router in (probes, single, lists, support, commands):
        app.include_router(router)
    install_handlers(app)
    app.add_middleware(Gate, tokens=tokens, rate=RateLimit())
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]
    return app


def _describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description without the 422 that FastAPI adds: a bad value is a 400 here."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for operations in described["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            described["components"]["schemas"].pop(name, None)
        app.openapi_schema = described
    return app.openapi_schema
