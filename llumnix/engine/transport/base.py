"""What every KV transport offers: the interface that llumlets use, its guarantees, its settings."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llumnix.errors import LlumnixError


class TransportError(LlumnixError):
    """A transport was asked for what it cannot do, or its connection broke; the message says why."""


class OutcomeKind(enum.Enum):
    """How a transfer ended, on this side; the other side may have seen a different end."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a transfer. `reason` is empty when done; `num_bytes` is what this side has moved."""

    kind: OutcomeKind
    reason: str
    num_bytes: int


OnDone = Callable[["Transfer", Outcome], None]


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """Bounds of a transport. Staging takes at most num_slots * chunk_bytes per peer and direction."""

    host: str = "127.0.0.1"
    """The address whose interface gloo and nccl control connections listen on, and no other."""
    chunk_bytes: int = 1 << 20
    """Bytes copied and sent at a time; a multiple of 4096. A cancellation waits for one copy at most."""
    num_slots: int = 4
    """Chunks in flight per peer and direction."""
    max_staging_bytes: int = 256 << 20
    """Largest staging that a sender may ask of this side for one connection."""
    peer_timeout_s: float = 1.5
    """Silence after which a peer with transfers under way is given up."""
    ping_interval_s: float = 0.3
    """How often a peer with transfers under way is asked for a sign of life."""
    open_timeout_s: float = 10.0
    """How long making a connection may take while the peer shows signs of life."""
    offer_timeout_s: float = 10.0
    """How long either side waits for the other one to send, or to expect, a transfer."""
    idle_close_s: float = 30.0
    """A connection without transfers is closed after this long; the next send opens one again."""

    def __post_init__(self) -> None:
        if self.chunk_bytes < 4096 or self.chunk_bytes % 4096 or self.num_slots < 1:
            raise TransportError(
                f"chunk_bytes = {self.chunk_bytes}, num_slots = {self.num_slots}: expected a multiple of "
                "4096 and at least one slot."
            )


class Transfer(ABC):
    """One set of blocks under way. Ends exactly once; `on_done` is called once, on the transport's thread.

    Once `on_done` runs, the transport neither reads nor writes any of the transfer's blocks again
    ("confirmed"): they may be freed and reused from inside the callback on. `on_done` must not block.
    """

    transfer_id: str
    block_ids: Sequence[int]

    @property
    @abstractmethod
    def outcome(self) -> Outcome | None:
        """None while under way; any thread may ask."""


class Channel(ABC):
    """The way to one peer endpoint. It connects at the first send, and again after a failure."""

    @abstractmethod
    def send(self, transfer_id: str, block_ids: Sequence[int], on_done: OnDone) -> Transfer:
        """Starts copying blocks to the peer, once it does `receive` this id; returns at once.

        The blocks' content must not change until `on_done`: complete blocks that the request holds do not.
        On GPU the copy comes after all work that the calling thread's current stream was given before.
        Fails after the peer's `offer_timeout_s` without a receiver.
        Raises TransportError for bad block ids or a closed endpoint; all else ends in `on_done`.
        """


class Endpoint(ABC):
    """One per instance (per rank) and transport. Safe to call from any thread; no call waits for a peer.

    Threads: one for all control traffic, timers and callbacks; one per open connection for the copies, so
    blocks are read and written beside the engine loop, without stopping it. Peers are independent of each
    other: one that joins, dies or hangs disturbs only transfers with itself. A dead peer's transfers fail
    within 2 s: at once if its process ended, after `peer_timeout_s` of silence if it hangs.
    """

    @property
    @abstractmethod
    def address(self) -> bytes:
        """For the peer's `connect`. Holds the secret that admits the peer: never log it."""

    @abstractmethod
    def connect(self, peer_address: bytes) -> Channel:
        """A channel to a peer; all to one peer share one connection. Raises TransportError if unusable."""

    @abstractmethod
    def receive(
        self, transfer_id: str, block_ids: Sequence[int], on_done: OnDone, fence: Any = None
    ) -> Transfer:
        """Expects a transfer of this id, to be written into these blocks; returns at once.

        On GPU the copy comes after what `fence` (KVBlocks.fence) marks, or else as `send`'s does.
        Fails after `offer_timeout_s` without a sender. Raises TransportError for bad block ids, an id that
        is already expected, or a closed endpoint.
        """

    @abstractmethod
    def cancel(self, transfer: Transfer) -> None:
        """Asks to stop: `on_done` follows with CANCELLED, or with the end that came first. Never waits.

        The other side's transfer fails, if it had begun; if not, it waits for its own cancel or time limit.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends all transfers as FAILED, then all threads, sockets and staging. Waits; not from `on_done`."""

    @abstractmethod
    def check_integrity(self) -> None:
        """Raises TransportError if a transfer or a staging slot is unaccounted for. Waits a moment."""

    @abstractmethod
    def usage(self) -> EndpointUsage:
        """What the endpoint holds now. Waits a moment for the transport's thread."""


@dataclass(frozen=True, slots=True)
class EndpointUsage:
    """Resources of one endpoint, as counted on its own thread."""

    num_connections: int
    num_transfers: int
    num_busy_slots: int
    staging_bytes: int
