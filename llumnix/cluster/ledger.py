"""What a llumnixd writes down of its cluster, so that the next one can take over where it was left."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from llumnix import __version__
from llumnix.config import Config, bound_to_processes, changed, digests
from llumnix.core.events import AdoptedInstance, DrainOrder, InstanceState
from llumnix.core.member import EMPTYING, SERVING, InstanceView
from llumnix.errors import LlumnixError
from llumnix.wire import Endpoints, PeerAddress

LEDGER_FILE_NAME = "cluster.ledger"


class LedgerError(LlumnixError):
    """The ledger's file cannot be written (disk full, permissions)."""


class KnownEngine(msgspec.Struct, frozen=True):
    """What the engine of an instance said of itself when it came up (wire.EngineUp)."""

    ready: bytes
    address: PeerAddress


class KnownInstance(msgspec.Struct, frozen=True):
    """An instance that is meant to stay."""

    instance: str
    uid: int
    incarnation: int
    node: str | None
    pid: int | None
    cordoned: bool
    engine: KnownEngine | None
    """None: it does not serve."""
    drain: DrainOrder | None = None
    """Its times are time.monotonic() of this machine; None: it is not drained."""
    cordoned_with_node: bool = False

    def adopted(self) -> AdoptedInstance:
        return AdoptedInstance(
            self.instance,
            self.uid,
            self.incarnation,
            self.node,
            self.pid,
            self.engine is not None,
            self.cordoned,
            self.drain,
            self.cordoned_with_node,
        )


class KnownApiServer(msgspec.Struct, frozen=True):
    """An API server that serves."""

    index: int
    actor: str
    """Its name in Ray."""
    pid: int


class Ledger(msgspec.Struct, frozen=True):
    """One cluster as its llumnixd last knew it. Holds secrets: CURVE keys and those of transports."""

    version: str
    """Of llumnix."""
    run_id: str
    """Of the Ray node that llumnixd was connected to."""
    digests: dict[str, str]
    """Of the settings that it was started with."""
    endpoints: Endpoints
    next_uid: int = 1
    next_instance: int = 0
    table_version: int = 0
    instances: tuple[KnownInstance, ...] = ()
    api_servers: tuple[KnownApiServer, ...] = ()
    engine_state: dict[str, tuple[bytes, ...]] = {}
    cordoned_nodes: tuple[str, ...] = ()

    def differs_in(self, key: str, config: Config) -> bool:
        """Whether the cluster's llumnixd was started with another value of this setting."""
        return key in changed(self.digests, digests(config))

    def under(self, config: Config) -> Ledger:
        """The same cluster, of a llumnixd with this configuration."""
        return msgspec.structs.replace(self, digests=digests(config))

    def now(
        self,
        views: Sequence[InstanceView],
        table_version: int,
        engines: Mapping[int, KnownEngine],
        api_servers: tuple[KnownApiServer, ...],
        engine_state: dict[str, tuple[bytes, ...]],
        cordoned_nodes: tuple[str, ...],
    ) -> Ledger:
        """The same cluster in its present state; `engines` by uid."""
        return msgspec.structs.replace(
            self,
            next_uid=max([self.next_uid, *(view.uid + 1 for view in views)]),
            next_instance=max([self.next_instance, *(int(view.instance[1:]) + 1 for view in views)]),
            table_version=table_version,
            instances=tuple(_known(view, engines) for view in views if _is_to_stay(view)),
            api_servers=api_servers,
            engine_state=engine_state,
            cordoned_nodes=cordoned_nodes,
        )


def _is_to_stay(view: InstanceView) -> bool:
    leaves = view.removing and view.state not in EMPTYING  # what is being emptied is still in use
    return not leaves and view.state is not InstanceState.DEAD


def _known(view: InstanceView, engines: Mapping[int, KnownEngine]) -> KnownInstance:
    return KnownInstance(
        instance=view.instance,
        uid=view.uid,
        incarnation=view.incarnation,
        node=view.node,
        pid=view.pid,
        cordoned=view.cordoned,
        engine=engines[view.uid] if view.state in SERVING else None,
        drain=view.drain,
        cordoned_with_node=view.cordoned_with_node,
    )


def new_ledger(config: Config, run_id: str, endpoints: Endpoints, next_uid: int) -> Ledger:
    """Of a cluster that is about to start."""
    return Ledger(__version__, run_id, digests(config), endpoints, next_uid=next_uid)


def write(state_dir: Path, ledger: Ledger) -> None:
    """Whole, or not at all and LedgerError.

    It need not outlive the machine, as nothing does that it tells of.
    """
    partial = state_dir / f"{LEDGER_FILE_NAME}.partial"
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.msgpack.encode(ledger))
        partial.replace(state_dir / LEDGER_FILE_NAME)
    except OSError as error:
        path = state_dir / LEDGER_FILE_NAME
        raise LedgerError(f"the ledger {path} cannot be written: {error.strerror}") from error


def read(state_dir: Path) -> Ledger | None:
    """The last one; None where there is none, or one that this llumnix cannot read."""
    try:
        return msgspec.msgpack.decode((state_dir / LEDGER_FILE_NAME).read_bytes(), type=Ledger)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def forget(state_dir: Path) -> None:
    """Once nothing is left to be taken over."""
    (state_dir / LEDGER_FILE_NAME).unlink(missing_ok=True)


def why_not_adoptable(ledger: Ledger | None, config: Config, run_id: str) -> str | None:
    """Why a llumnixd with this configuration cannot take over what runs, in one sentence; None: it can."""
    if ledger is None:
        return "nothing is known of it"
    if ledger.run_id != run_id:
        return "it belongs to another Ray node"
    if ledger.version != __version__:
        return f"it was started by llumnix {ledger.version}, and this is {__version__}"
    keys = bound_to_processes(changed(ledger.digests, digests(config)))
    return f"{', '.join(keys)} changed" if keys else None
