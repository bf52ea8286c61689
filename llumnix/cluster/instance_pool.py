"""The processes of all instances: starts, stops and kills them through Ray, and tells of their deaths."""

from __future__ import annotations

import asyncio
import contextlib
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
    kill_actor,
)
from llumnix.cluster.tasks import failure_of
from llumnix.config import Config
from llumnix.core.events import Event, InstanceDied, InstancePlaced
from llumnix.engine.main import EngineSpec, uses_gpus
from llumnix.wire import Endpoints

_STAGE_INTERVAL_S = 0.5
_NODE_LABEL = "ray.io/node-id"


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
        self._cores_dir = None if uses_gpus() or config.simulated else cores_dir
        self._tell = tell
        self._actors: dict[int, Any] = {}
        self._places: dict[int, Place] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.stages: dict[int, str] = {}
        """By uid: what an instance's start is at; gone once it serves."""

    def start(self, instance: str, uid: int, not_on: tuple[str, ...] = ()) -> None:
        """Have Ray start it on any node but those in `not_on`; it waits until there is one with room."""
        spec = EngineSpec(self._config, instance, uid, self._endpoints, self._model)
        actor = InstanceActor.options(  # type: ignore[attr-defined]
            name=instance_actor_name(uid),
            lifetime="detached",
            max_concurrency=MAX_WATCHERS,
            max_restarts=0,
            # A simulated instance sleeps through its steps: many share a CPU.
            num_cpus=0 if self._config.simulated else self._config.instances.cpus_per_instance,
            num_gpus=self._config.gpus_per_instance if uses_gpus() and not self._config.simulated else 0,
            scheduling_strategy="SPREAD",
            label_selector={_NODE_LABEL: f"!in({','.join(not_on)})"} if not_on else None,
        ).remote(spec, self._cores_dir)
        self.stages[uid] = "waiting for a place"
        self._hold(uid, actor, actor.run.remote())

    def adopt(self, uid: int) -> None:
        """Take over a process that a former llumnixd started; one that is gone is told as dead."""
        try:
            actor = ray.get_actor(instance_actor_name(uid))
        except ValueError:
            self._tell(InstanceDied(uid, "its process ended while llumnixd was away"))
        else:
            self._hold(uid, actor, actor.wait_end.remote())

    def _hold(self, uid: int, actor: Any, end: Any) -> None:
        self._actors[uid] = actor
        self._keep(self._watch(uid, actor, end))
        self._keep(self._find_place(uid, actor))

    def kill(self, uid: int) -> None:
        """End the process at once."""
        actor = self._actors.get(uid)
        if actor is not None:
            kill_actor(actor, self._places.get(uid))

    def uids(self) -> list[int]:
        return list(self._actors)

    def place(self, uid: int) -> Place | None:
        return self._places.get(uid)

    def failed_task(self) -> BaseException | None:
        """What ended a task that watches an instance before the instance's end, if anything did."""
        return failure_of(self._tasks)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, uid: int, actor: Any, end: Any) -> None:
        reason = await ended(end)
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
        task.add_done_callback(self._drop_unless_failed)

    def _drop_unless_failed(self, task: asyncio.Task[None]) -> None:
        if failure_of([task]) is None:
            self._tasks.discard(task)
