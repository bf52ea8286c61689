"""The processes of all instances: starts, stops and kills them through Ray, and tells of their deaths."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from llumnix.cluster.actors import (
    MAX_WATCHERS,
    InstanceActor,
    Place,
    death_reason,
    ended,
    instance_actor_name,
)
from llumnix.config import Config
from llumnix.core.events import Event, InstanceDied, InstancePlaced
from llumnix.engine.main import EngineSpec, uses_gpus
from llumnix.wire import Endpoints

_STAGE_INTERVAL_S = 0.5


class InstancePool:
    """Every started incarnation ends in exactly one InstanceDied event.

    Runs on the daemon's event loop; Ray's own calls are short or awaited.
    """

    def __init__(
        self, config: Config, endpoints: Endpoints, model: str, cores_dir: Path, tell: Callable[[Event], None]
    ) -> None:
        self._config = config
        self._endpoints = endpoints
        self._model = model
        self._cores_dir = None if uses_gpus() else cores_dir
        self._tell = tell
        self._actors: dict[int, Any] = {}
        self._places: dict[int, Place] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.stages: dict[int, str] = {}
        """By uid: what an instance's start is at; gone once it serves."""

    def start(self, instance: str, uid: int) -> None:
        spec = EngineSpec(self._config, instance, uid, self._endpoints, self._model)
        actor = InstanceActor.options(  # type: ignore[attr-defined]
            name=instance_actor_name(uid),
            lifetime="detached",
            max_concurrency=MAX_WATCHERS,
            max_restarts=0,
            num_cpus=self._config.instances.cpus_per_instance,
            num_gpus=self._config.gpus_per_instance if uses_gpus() else 0,
            scheduling_strategy="SPREAD",
        ).remote(spec, self._cores_dir)
        self._actors[uid] = actor
        self.stages[uid] = "waiting for a place"
        self._keep(self._watch(uid, actor))
        self._keep(self._find_place(uid, actor))

    def kill(self, uid: int) -> None:
        """End the process at once, whatever it does: Ray's kill, and SIGKILL where it is on this machine."""
        actor = self._actors.get(uid)
        if actor is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        place = self._places.get(uid)
        if place is not None and place.node_id == ray.get_runtime_context().get_node_id():
            with contextlib.suppress(ProcessLookupError):
                os.kill(place.pid, signal.SIGKILL)

    def uids(self) -> list[int]:
        return list(self._actors)

    def place(self, uid: int) -> Place | None:
        return self._places.get(uid)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, uid: int, actor: Any) -> None:
        reason = await ended(actor.run.remote())
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(actor)
        self._actors.pop(uid, None)
        self._places.pop(uid, None)
        self.stages.pop(uid, None)
        self._tell(InstanceDied(uid, reason))

    async def _find_place(self, uid: int, actor: Any) -> None:
        try:
            place = await asyncio.wrap_future(actor.place.remote().future())
            self._places[uid] = place
            self._tell(InstancePlaced(uid, place.node_id, place.pid))
            while uid in self.stages:
                self.stages[uid] = await asyncio.wrap_future(actor.stage.remote().future())
                await asyncio.sleep(_STAGE_INTERVAL_S)
        except ray.exceptions.RayError as error:
            self.stages[uid] = death_reason(error)

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
