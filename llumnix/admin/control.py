"""What the admin API asks of the cluster: the cluster manager implements it, the API knows nothing else."""

from typing import Any, Protocol

from llumnix.admin.schema import (
    Cluster,
    Diagnostics,
    DrainOptions,
    Instance,
    Migration,
    MigrationsBegun,
    MigrationTotals,
    Node,
    Request,
    TargetKind,
)
from llumnix.errors import RefusedError


class MigrationUnavailableError(RefusedError):
    """Requests cannot be moved live in this cluster at all; the message says why."""


class ClusterControl(Protocol):
    """The cluster's state and commands.

    All of it runs on the daemon's event loop. Getters answer from memory at once: they never wait for an
    engine, and may be called many times a second. What is awaited of logs asks another node, in bounded time.
    Commands return once they are under way, not when they are complete: the state shows their progress.
    Commands raise UnknownTargetError (404), RefusedError (409) or ConfigError (a bad value: 400). `actor` is
    the name of the caller's token; the API writes the audit event, the implementation only what happens in
    consequence. Request ids are the OpenAI response id or the internal one; a response id stands for all of
    its children.
    """

    def cluster(self) -> Cluster:
        """Return the cluster at a glance."""
        ...

    def instances(self) -> list[Instance]:
        """Return all instances, in any order; dead ones as long as they are of interest."""
        ...

    def nodes(self) -> list[Node]:
        """Return all nodes, in any order."""
        ...

    def requests(self) -> list[Request]:
        """Return all unfinished requests, in any order, each with a constant `arrived_at`."""
        ...

    def migrations(self) -> list[Migration]:
        """Return the migrations under way and the latest of the ended ones, in any order."""
        ...

    def migration_totals(self) -> MigrationTotals:
        """Return how many migrations have ended since the start, by source and target, in any order."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Return whether every wanted instance and the OpenAI endpoint serve, and if not, why."""
        ...

    def config(self) -> dict[str, Any]:
        """Return the effective configuration with every secret masked already."""
        ...

    def diagnostics(self) -> Diagnostics:
        """Return what a support bundle holds of the cluster."""
        ...

    def own_node(self) -> str:
        """Return the node that the daemon itself runs on: its logs are on the daemon's machine."""
        ...

    async def log_names(self, node_id: str) -> tuple[str, ...]:
        """Return what has a log on another node; refused if that is gone or does not answer soon."""
        ...

    async def log_tail(self, node_id: str, name: str, num_lines: int) -> tuple[str, ...]:
        """Return the last lines of a log on another node; UnknownTargetError where there is none."""
        ...

    async def scale(self, count: int, actor: str) -> None:
        """Begin to have this many instances. Refused beyond the scaling bounds."""
        ...

    async def add_instances(self, count: int, actor: str) -> list[str]:
        """Begin to start instances, beyond the scaling bounds too; returns their ids."""
        ...

    async def remove_instance(self, instance_id: str, actor: str) -> None:
        """Begin to drain an instance, which is removed when it is empty."""
        ...

    async def cordon(self, kind: TargetKind, target_id: str, actor: str) -> None:
        """Send no new requests there; in force when it returns."""
        ...

    async def uncordon(self, kind: TargetKind, target_id: str, actor: str) -> None:
        """Undo a cordon or a drain; in force when it returns."""
        ...

    async def drain(self, kind: TargetKind, target_id: str, options: DrainOptions, actor: str) -> None:
        """Begin to empty an instance or a node; `drained` and `safe_to_remove` are the signal."""
        ...

    async def restart(self, instance_id: str, options: DrainOptions, actor: str) -> None:
        """Begin to drain an instance, whose process is replaced when it is empty."""
        ...

    async def terminate(self, kind: TargetKind, target_id: str, deadline_s: float, actor: str) -> None:
        """Begin to empty and remove what is taken away in `deadline_s`; replaced where too few are left."""
        ...

    async def set_priority(self, request_id: str, class_name: str, actor: str) -> Request:
        """Move a request to another class; returns it as it is afterwards. ConfigError: no such class."""
        ...

    async def abort_request(self, request_id: str, actor: str) -> None:
        """Abort a request, all of its children, through the API server that owns it."""
        ...

    async def migrate(self, request_id: str, to: str | None, actor: str) -> MigrationsBegun:
        """Begin to move a request, its children one by one. May raise MigrationUnavailableError."""
        ...
