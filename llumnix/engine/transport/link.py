"""What both ends of a connection have in common: control socket, signs of life, worker, ending."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llumnix.engine.transport.base import OutcomeKind, TransportError, TransportSettings
from llumnix.engine.transport.blocks import KVBlocks
from llumnix.engine.transport.chunks import ChunkPlan
from llumnix.engine.transport.control import ControlSocket
from llumnix.engine.transport.loop import Loop
from llumnix.engine.transport.messages import Address, Message, Note, Ping, Pong
from llumnix.engine.transport.plane import Geometry, Mailbox, Plane, PlaneSource
from llumnix.engine.transport.transfer import BlockTransfer
from llumnix.engine.transport.worker import Job, Reports, Worker


@dataclass(frozen=True)
class Surroundings:
    """What every connection of an endpoint works with."""

    loop: Loop
    blocks: KVBlocks
    settings: TransportSettings
    planes: PlaneSource
    address: Address
    on_gone: Callable[[Link], None]
    """Called on the loop once a connection holds nothing any more."""


@dataclass(slots=True)
class Carried:
    """A transfer on a connection, chunk by chunk, in order: num_taken <= next_chunk <= plan.num_chunks."""

    transfer: BlockTransfer
    plan: ChunkPlan
    next_chunk: int = 0
    num_taken: int = 0


class Link(ABC):
    """One direction of one pair of endpoints: the side that connects sends blocks, the other receives.

    Every method is for the loop's thread. Data flows one way, so a pair that exchanges has two of these.
    """

    sends: bool

    def __init__(self, around: Surroundings) -> None:
        now = time.monotonic()
        self._around = around
        self._control: ControlSocket | None = None
        self._mailbox = Mailbox(self._send_note)
        self._worker: Worker | None = None
        self._is_open = False
        self._ending: str | None = None
        """Why the connection ends; the worker may still be closing the data plane."""
        self._gone = False
        self._born = self._last_heard = self._last_ping = self._last_used = now
        self.staging_bytes = 0
        self._transfers: dict[int, Carried] = {}
        """By number, those that have not ended."""
        self._busy_slots: dict[int, int] = {}
        """Staging slot -> number of the transfer whose chunk is in it."""

    @property
    def is_usable(self) -> bool:
        """Whether it may take a further transfer."""
        return self._ending is None

    @property
    def num_transfers(self) -> int:
        """Transfers that this connection carries and that have not ended."""
        return len(self._transfers)

    @property
    def num_busy_slots(self) -> int:
        """Staging slots in use."""
        return len(self._busy_slots)

    @abstractmethod
    def _handle(self, message: Message) -> None:
        """One message of the connection's own protocol; raises TransportError if it is out of place."""

    @abstractmethod
    def _copied(self, job: Job, staged: bool) -> None:
        """The worker has done one job."""

    @abstractmethod
    def _opened(self) -> None:
        """The worker has opened this side's data plane."""

    def _take_transfers(self) -> list[BlockTransfer]:
        """Forgets all transfers that have not ended, and returns them."""
        taken = [carried.transfer for carried in self._transfers.values()]
        self._transfers.clear()
        return taken

    @abstractmethod
    def drop(self, transfer: BlockTransfer, reason: str) -> None:
        """Forgets one transfer and tells the peer; what is staged of it is still accounted for."""

    def check_integrity(self) -> None:
        """Raises TransportError if slots or transfers do not add up."""
        if ended := [i for i, c in self._transfers.items() if c.transfer.outcome is not None]:
            raise TransportError(f"ended transfers are still carried: {ended}.")

    def tick(self, now: float) -> None:
        """Asks a peer that matters for a sign of life, and gives it up after peer_timeout_s of silence."""
        settings = self._around.settings
        if self._ending is not None or (self._is_open and not self.num_transfers):
            return
        if now - self._last_heard > settings.peer_timeout_s:
            self.fail(f"the peer has been silent for {settings.peer_timeout_s} s")
        elif not self._is_open and now - self._born > settings.open_timeout_s:
            self.fail(f"the connection was not made within {settings.open_timeout_s} s")
        elif now - self._last_ping >= settings.ping_interval_s:
            self._last_ping = now
            self._send(Ping())

    def fail(self, reason: str) -> None:
        """Ends the connection and fails its transfers; safe to call again."""
        if self._ending is None:
            self._end(reason, clean=False)
            for transfer in self._take_transfers():
                transfer.end(OutcomeKind.FAILED, reason)

    def join(self, timeout_s: float) -> bool:
        """Waits for the worker, from outside of the loop; whether it has ended."""
        return self._worker is None or self._worker.join(timeout_s)

    def _end(self, reason: str, clean: bool) -> None:
        """The control socket of a clean end closes only once the data plane is closed: the peer waits."""
        self._ending = reason
        self._is_open = False
        self._mailbox.fail(reason)
        if not clean:
            self._close_control()
        if self._worker is None:
            self._forget()
        else:
            self._worker.finish(clean)

    def _closed(self) -> None:
        self._close_control()
        self._forget()

    def _close_control(self) -> None:
        if self._control is not None:
            self._control.close()

    def _forget(self) -> None:
        if not self._gone:
            self._gone = True
            self.staging_bytes = 0
            self._around.on_gone(self)

    def _start_worker(self, geometry: Geometry) -> None:
        self._is_open = False
        self.staging_bytes = geometry.num_bytes
        plane: Plane = self._around.planes.plane(geometry, self._mailbox)
        soon = self._around.loop.call_soon
        reports = Reports(
            opened=lambda: _ignore(soon(self._unless_ending, self._opened)),
            copied=lambda job, staged: _ignore(soon(self._unless_ending, self._copied, job, staged)),
            failed=lambda reason: _ignore(soon(self.fail, reason)),
            closed=lambda: _ignore(soon(self._closed)),
        )
        kind = "send" if self.sends else "receive"
        name = f"kv-{self._around.address.transport}-{kind}"
        self._worker = Worker(plane, self._around.blocks, self.sends, reports, name)

    def _unless_ending(self, report: Callable[..., None], *args: Any) -> None:
        if self._ending is None:
            self._guarded(report, *args)

    def _guarded(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except TransportError as error:
            self.fail(str(error))

    def _on_message(self, message: Message, fds: list[int]) -> None:
        self._last_heard = time.monotonic()
        match message:
            case Note():
                self._mailbox.put(message.key, message.value, fds)
            case Ping():
                self._send(Pong())
            case Pong():
                pass
            case _:
                self._guarded(self._handle, message)

    def _on_end(self, reason: str) -> None:
        self.fail(reason)

    def _send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        if self._control is not None:
            self._control.send(message, fds)

    def _send_note(self, key: str, value: bytes, fds: tuple[int, ...]) -> bool:
        return self._around.loop.call_soon(self._send, Note(key, value, len(fds)), fds)

    def _begin_use(self) -> None:
        """An idle peer was asked for no sign of life: its silence counts from now on."""
        if not self.num_transfers:
            self._last_heard = max(self._last_heard, time.monotonic())


def out_of_place(message: Message) -> TransportError:
    """For a peer that does not keep to the protocol."""
    return TransportError(f"the peer sent {type(message).__name__} out of place")


def _ignore(accepted: bool) -> None:
    """A report to an endpoint whose thread has ended concerns nobody."""
