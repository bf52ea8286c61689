"""The API server processes: started, supervised and started again, each on its fixed addresses."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ray

from llumnix.cluster.actors import MAX_WATCHERS, ApiServerActor, ended
from llumnix.cluster.ledger import KnownApiServer
from llumnix.cluster.tasks import failure_of
from llumnix.config import Config
from llumnix.wire import Endpoints

_BACKOFF_MAX_S = 30.0
_HEALTHY_AFTER_S = 30.0


@dataclass(slots=True)
class ApiServerState:
    """One API server through all its incarnations."""

    index: int
    actor: str = ""
    """Its name in Ray."""
    pid: int | None = None
    serving: bool = False
    restarts: int = 0
    failures: int = 0
    reason: str = ""
    since: float = 0.0


class ApiServerPool:
    """Keeps `http.api_servers` processes alive until `stop`; runs on the daemon's event loop."""

    def __init__(
        self,
        config: Config,
        endpoints: Endpoints,
        model: str,
        record: Callable[[str, str, str, str], None],
        on_gone: Callable[[int], None],
    ) -> None:
        """`record(kind, severity, target, message)` writes the journal; `on_gone(index)` tells a death."""
        self._config = config
        self._endpoints = endpoints
        self._model = model
        self._record = record
        self._on_gone = on_gone
        self._actors: dict[int, Any] = {}
        self._stopping = False
        self.states = [ApiServerState(k) for k in range(config.http.api_servers)]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, known: Iterable[KnownApiServer] = ()) -> None:
        """Start all but those that are `known`: a former llumnixd started them, and they are taken over."""
        for server in known:
            state = self.states[server.index]
            state.actor, state.pid, state.serving = server.actor, server.pid, True
            state.since = asyncio.get_running_loop().time()
        self._tasks = [asyncio.create_task(self._supervise(state)) for state in self.states]

    def known(self) -> tuple[KnownApiServer, ...]:
        """Those that serve, for a next llumnixd."""
        return tuple(
            KnownApiServer(s.index, s.actor, s.pid) for s in self.states if s.serving and s.pid is not None
        )

    def is_serving(self) -> bool:
        return any(state.serving for state in self.states)

    def up(self, index: int, pid: int) -> None:
        self.states[index].pid = pid

    def serves(self, index: int) -> None:
        state = self.states[index]
        state.serving = True
        state.since = asyncio.get_running_loop().time()
        self._record("apiserver.ready", "info", f"apiserver/{index}", f"pid {state.pid} answers HTTP")

    def failed_task(self) -> BaseException | None:
        """What ended the supervision of one, if anything did."""
        return failure_of(self._tasks)

    async def stopped(self, timeout_s: float) -> None:
        """Wait until all have ended, having been told so; those that live after `timeout_s` are killed."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        self.kill_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def expect_end(self) -> None:
        """From here on an API server that ends is not started again; what never came up ends at once."""
        self._stopping = True
        for state, task in zip(self.states, self._tasks, strict=True):
            if state.pid is None:  # it has no request, or waits for its back-off
                task.cancel()
                self._kill(state.index)

    def leave(self) -> None:
        """Supervise no more; what serves goes on."""
        for task in self._tasks:
            task.cancel()

    def kill_all(self) -> None:
        self._stopping = True
        self.leave()
        for index in self._actors:
            self._kill(index)

    def _kill(self, index: int) -> None:
        actor = self._actors.get(index)
        if actor is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)

    async def _supervise(self, state: ApiServerState) -> None:
        while not self._stopping:
            self._gone(state, await self._one_process(state))
            await asyncio.sleep(0.0 if self._stopping else self._backoff_s(state))
            state.restarts += 1

    async def _one_process(self, state: ApiServerState) -> str:
        """From its start, or from its being taken over, to its end; returns why it ended."""
        if state.serving:
            try:
                actor = ray.get_actor(state.actor)
            except ValueError:
                return "it ended while llumnixd was away"
            end = actor.wait_end.remote()
        else:
            actor, end = self._launch(state)
        self._actors[state.index] = actor
        reason = await ended(end)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(actor)
        return reason

    def _launch(self, state: ApiServerState) -> tuple[Any, Any]:
        # Imported here: the spec's module is vLLM's side, and this process has no need of vLLM.
        from llumnix.frontend.spec import ApiServerSpec

        # Of a former one Ray may still know the name.
        state.actor = f"api-server-{state.index}-{secrets.token_hex(4)}"
        actor = ApiServerActor.options(  # type: ignore[attr-defined]
            name=state.actor,
            lifetime="detached",
            max_concurrency=MAX_WATCHERS,
            max_restarts=0,
            num_cpus=0,
            scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            ),
        ).remote(ApiServerSpec(self._config, state.index, self._endpoints, self._model))
        return actor, actor.run.remote()

    def _gone(self, state: ApiServerState, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        if state.serving and now - state.since > _HEALTHY_AFTER_S:
            state.failures = 0
        state.serving = False
        state.pid = None
        state.reason = reason
        if not self._stopping:
            state.failures += 1
            self._record("apiserver.died", "error", f"apiserver/{state.index}", reason)
        self._on_gone(state.index)

    def _backoff_s(self, state: ApiServerState) -> float:
        if state.failures <= 1:
            return 0.0
        wait_s: float = self._config.instances.restart_backoff_s * 2 ** (state.failures - 2)
        return min(_BACKOFF_MAX_S, wait_s)
