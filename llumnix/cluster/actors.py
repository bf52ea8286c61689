"""The Ray actors of a cluster: one process each for an instance and for an API server.

Both are detached and named, so that they outlive llumnixd. Ray places, starts and ends them and tells of
their deaths; everything else goes over our own sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from llumnix.cluster import leftovers
from llumnix.config import Config
from llumnix.engine.main import SERVING, EngineSpec, prepare_environment, root_cause, run_engine
from llumnix.errors import StartupError
from llumnix.log import log_dir_here, log_to, print_to

if TYPE_CHECKING:
    from llumnix.frontend.spec import ApiServerSpec

MAX_WATCHERS = 64  # every llumnixd and API server of its time leaves one behind
_EXIT_AFTER_END_S = 3.0
_KILL_TIMEOUT_S = 30.0
_PLACE_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor's process runs."""

    node_id: str
    node_ip: str
    pid: int


def instance_actor_name(uid: int) -> str:
    return f"instance-{uid}"


class _Process:
    """What both kinds of process share: their place, their log, their end."""

    def __init__(self) -> None:
        self._ended: Future[str] = Future()

    def place(self) -> Place:
        """Answers as soon as the process is there."""
        context = ray.get_runtime_context()
        return Place(context.get_node_id(), ray.util.get_node_ip_address(), os.getpid())

    def wait_end(self) -> str:
        """Returns only when the process is about to end, with the reason; its death fails the call."""
        return self._ended.result()

    def _end(self, reason: str) -> str:
        self._ended.set_result(reason)
        # Whoever waits is answered first; a manager that is away would not end this process.
        timer = threading.Timer(_EXIT_AFTER_END_S, os._exit, (0,))
        timer.daemon = True
        timer.start()
        return reason


@ray.remote
class InstanceActor(_Process):
    """The process of one instance."""

    def __init__(self, spec: EngineSpec, cores_dir: Path | None) -> None:
        """`cores_dir`: where processes of this node agree on CPU cores; None: no pinning (GPU)."""
        super().__init__()
        self._spec = spec
        self._cores_dir = cores_dir
        self._stage = "starting"
        _log_to_file(spec.config, f"{spec.instance}.log")

    def stage(self) -> str:
        """What the start is at."""
        return self._stage

    def run(self) -> str:
        """The engine's whole life; returns why it ended."""
        num_cores, num_workers = self._spec.config.instances.cpus_per_instance, self._spec.config.world_size
        if self._cores_dir is not None:
            self._core_lock = _pin_to_free_cores(self._cores_dir, num_cores)
        prepare_environment(max(1, num_cores // num_workers))
        leftovers.enter_engine_dir(os.environ[leftovers.RUN_ID_VARIABLE])
        return self._end(run_engine(self._spec, ray.util.get_node_ip_address(), self._set_stage))

    def _set_stage(self, stage: str) -> None:
        self._stage = stage
        if stage == SERVING and self._spec.config.world_size > 1:
            leftovers.note_shared_memory()


@ray.remote
class ApiServerActor(_Process):
    """The process of one API server."""

    def __init__(self, spec: ApiServerSpec) -> None:
        super().__init__()
        self._spec = spec
        _log_to_file(spec.config, f"api{spec.index}.log")

    def run(self) -> str:
        """Serve until told to stop; returns why it ended."""
        prepare_environment(1)
        metrics_dir = self._spec.metrics_dir
        Path(metrics_dir).mkdir(mode=0o700, exist_ok=True)
        # Read by prometheus_client when it is imported, which nothing in this process has done so far.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_dir
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is why this process ends
            import traceback

            traceback.print_exc()
            return self._end(root_cause(error))
        return self._end("stopped in good order")

    def _serve(self) -> None:
        import uvloop

        from llumnix.frontend.server import ApiServer

        async def main() -> None:
            instances = WatchedInstances()
            await ApiServer(self._spec, instances.watch, instances.kill).run()

        uvloop.run(main())


class WatchedInstances:
    """What an API server knows of instances without llumnixd: its own calls, pending on their actors."""

    def __init__(self) -> None:
        self._actors: dict[int, tuple[Any, Future[Place]]] = {}

    def watch(self, uid: int, instance: str, died: Callable[[int, str], None]) -> None:
        """Have `died` called when the instance's process ends."""

        def ended(future: Future[Any]) -> None:
            self._actors.pop(uid, None)
            error = future.exception()
            died(uid, str(future.result()) if error is None else death_reason(error))

        try:
            actor = ray.get_actor(instance_actor_name(uid))
        except ValueError:
            died(uid, "its process is gone")
            return
        self._actors[uid] = (actor, actor.place.remote().future())
        actor.wait_end.remote().future().add_done_callback(ended)

    def kill(self, uid: int) -> None:
        """End the instance's process, unless it has ended."""
        actor, place = self._actors.get(uid, (None, None))
        if place is not None:
            kill_actor(actor, place.result() if place.done() and place.exception() is None else None)


def kill_actor(actor: Any, place: Place | None) -> None:
    """End the process at once, whatever it does: Ray's kill, and SIGKILL where it is on this machine."""
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(actor)
    if place is not None and place.node_id == ray.get_runtime_context().get_node_id():
        with contextlib.suppress(ProcessLookupError):
            os.kill(place.pid, signal.SIGKILL)


def death_reason(error: BaseException) -> str:
    """Ray's word on a dead actor in one line."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return root_cause(error.cause if isinstance(error.cause, BaseException) else error)
    if isinstance(error, ray.exceptions.ActorUnschedulableError):
        return f"Ray cannot place it: {' '.join(str(error).split())}"
    return "its process died"


def named_actors() -> list[str]:
    """Names of the actors of this cluster that live."""
    names: list[str] = ray.util.list_named_actors()
    return names


async def end_actors(names: Iterable[str]) -> None:
    """Kill actors of this cluster and wait until they are dead; StartupError if one is not in time.

    Ray calls an actor dead a little before its process is gone, and with it the port that it listens at.
    """
    actors = []
    for name in names:
        with contextlib.suppress(ValueError):  # gone meanwhile
            actors.append(ray.get_actor(name))
    places = await asyncio.gather(*map(_place_soon, actors))
    ends = [ended(actor.wait_end.remote()) for actor in actors]
    for actor, place in zip(actors, places, strict=True):
        kill_actor(actor, place)
    try:
        await asyncio.wait_for(asyncio.gather(*ends, *map(_gone, places)), _KILL_TIMEOUT_S)
    except TimeoutError:
        raise StartupError(
            f"Actors of a former llumnixd live {_KILL_TIMEOUT_S:g} s after their kill."
        ) from None


async def _place_soon(actor: Any) -> Place | None:
    """Where its process is, if it can say so."""
    try:
        place: Place = await asyncio.wait_for(
            asyncio.wrap_future(actor.place.remote().future()), _PLACE_TIMEOUT_S
        )
    except (TimeoutError, ray.exceptions.RayError):
        return None
    return place


async def _gone(place: Place | None) -> None:
    """Wait until a process of this machine has ended, with all of its threads."""
    if place is None or place.node_id != ray.get_runtime_context().get_node_id():
        return
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(place.pid)
        try:
            while not select.select([process], [], [], 0)[0]:
                await asyncio.sleep(0.02)
        finally:
            os.close(process)


async def ended(reference: Any) -> str:
    """Wait for a `run` or `wait_end` call; the reason, whatever way the process ended."""
    try:
        return str(await asyncio.wrap_future(reference.future()))
    except ray.exceptions.RayError as error:
        return death_reason(error)


def _log_to_file(config: Config, name: str) -> None:
    """Everything the process prints, vLLM's log too, goes to one file."""
    directory = log_dir_here(config.cluster.state_dir / "logs")
    print_to(directory / name, max_bytes=config.logging.max_bytes, backups=config.logging.backups)
    log_to(None, config.logging.level, max_bytes=0, backups=0, terminal=True)


def _pin_to_free_cores(cores_dir: Path, num_cores: int) -> Any:
    """Take the lowest share of the node's cores that no living instance has; the file's lock holds it."""
    cores = sorted(os.sched_getaffinity(0))
    cores_dir.mkdir(parents=True, exist_ok=True)
    share = 0
    while True:
        lock = (cores_dir / f"{share}.lock").open("w")  # held for the process's life
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            share += 1
            continue
        mine = {cores[(share * num_cores + k) % len(cores)] for k in range(num_cores)}
        # Of this thread: all that the engine starts from here on inherits it, Ray's own threads do not.
        os.sched_setaffinity(0, mine)
        return lock
