"""An endpoint: the listener, the channels to peers, and the books of all transfers of one instance."""

from __future__ import annotations

import logging
import selectors
import threading
import time
from collections.abc import Sequence
from typing import Any

from llumnix.engine.transport.base import (
    Channel,
    Endpoint,
    EndpointUsage,
    OnDone,
    Outcome,
    OutcomeKind,
    Transfer,
    TransportError,
    TransportSettings,
)
from llumnix.engine.transport.blocks import KVBlocks
from llumnix.engine.transport.link import Link, Surroundings
from llumnix.engine.transport.listening import listen
from llumnix.engine.transport.loop import Loop
from llumnix.engine.transport.messages import Address, decode_address, encode_address
from llumnix.engine.transport.plane import PlaneSource
from llumnix.engine.transport.receiving import ReceiveLink
from llumnix.engine.transport.sending import SendLink
from llumnix.engine.transport.transfer import BlockTransfer

logger = logging.getLogger(__name__)

_MAX_RECEIVE_LINKS = 256
_ANSWER_TIMEOUT_S = 5.0
_TICK_S = 0.1


class BlockEndpoint(Endpoint):
    """The one implementation; the data plane makes the difference between transports."""

    def __init__(
        self, transport: str, blocks: KVBlocks, settings: TransportSettings, planes: PlaneSource
    ) -> None:
        self._blocks = blocks
        self._settings = settings
        self._planes = planes
        self._listener, self._own = listen(transport, blocks, settings, planes.family)
        self._lock = threading.Lock()
        """Guards what callers of any thread touch: the fields from here to _receiving."""
        self._closed = False
        self._num_starting = 0
        """Sends whose connection the loop has not looked for yet."""
        self._sending: set[str] = set()
        self._expected: dict[str, tuple[BlockTransfer, float]] = {}
        """Receives that no sender has offered yet, with the time at which they fail."""
        self._receiving: set[str] = set()
        """Ids of all receives, expected or under way."""
        self._links: set[Link] = set()
        """All connections that hold something; from here on only for the loop's thread."""
        self._outgoing: dict[str, SendLink] = {}
        """By the peer's uid, the connection that its next transfer takes if it is still usable."""
        self._ticking = False
        self._loop = Loop(f"kv-{transport}")
        self._around = Surroundings(self._loop, blocks, settings, planes, self._own, self._link_gone)
        self._loop.call_soon(self._loop.watch, self._listener, selectors.EVENT_READ, self._accept)

    @property
    def address(self) -> bytes:
        """See Endpoint."""
        return encode_address(self._own)

    def connect(self, peer_address: bytes) -> Channel:
        """See Endpoint."""
        peer = decode_address(peer_address)
        if peer.transport != self._own.transport:
            raise TransportError(f"the peer's transport is {peer.transport}, this one {self._own.transport}.")
        if peer.fingerprint != self._blocks.fingerprint:
            raise TransportError("the two sides' KV cache layouts differ.")
        if peer.family == "unix" and peer.host_id != self._own.host_id:
            raise TransportError(f"{peer.transport} works inside a node only, and the peer is on another.")
        with self._lock:
            self._check_open()
        return _PeerChannel(self, peer)

    def receive(
        self, transfer_id: str, block_ids: Sequence[int], on_done: OnDone, fence: Any = None
    ) -> Transfer:
        """See Endpoint."""
        self._blocks.check_ids(block_ids)
        if fence is None:
            fence = self._blocks.fence()
        with self._lock:
            transfer = self._new(transfer_id, block_ids, on_done, fence, self._receiving)
            self._expected[transfer_id] = (transfer, time.monotonic() + self._settings.offer_timeout_s)
            # Under the lock: the loop cannot end before it has seen this one.
            self._loop.call_soon(self._expect, transfer_id)
        return transfer

    def cancel(self, transfer: Transfer) -> None:
        """See Endpoint."""
        if isinstance(transfer, BlockTransfer):
            self._loop.call_soon(self._cancel, transfer)

    def close(self) -> None:
        """See Endpoint."""
        if self._loop.is_own_thread():
            raise TransportError("an endpoint cannot be closed from a completion callback.")
        with self._lock:
            if self._closed:
                return
            self._closed = True
        links = self._loop.call_and_wait(self._shut_down, _ANSWER_TIMEOUT_S)
        deadline = time.monotonic() + self._settings.open_timeout_s
        for link in links:
            if not link.join(max(0.0, deadline - time.monotonic())):
                logger.error("a connection of the KV transport is stuck and was left behind")
        self._loop.stop()
        self._planes.close()

    def check_integrity(self) -> None:
        """See Endpoint."""
        self._loop.call_and_wait(self._check, _ANSWER_TIMEOUT_S)

    def usage(self) -> EndpointUsage:
        """See Endpoint."""
        counted: EndpointUsage = self._loop.call_and_wait(self._count, _ANSWER_TIMEOUT_S)
        return counted

    def start_send(
        self, peer: Address, transfer_id: str, block_ids: Sequence[int], on_done: OnDone
    ) -> Transfer:
        """For channels: any thread, never waits."""
        self._blocks.check_ids(block_ids)
        fence = self._blocks.fence()
        with self._lock:
            transfer = self._new(transfer_id, block_ids, on_done, fence, self._sending)
            self._num_starting += 1
            self._loop.call_soon(self._carry, peer, transfer)
        return transfer

    def _new(
        self, transfer_id: str, block_ids: Sequence[int], on_done: OnDone, fence: Any, ids: set[str]
    ) -> BlockTransfer:
        self._check_open()
        if transfer_id in ids:
            raise TransportError(f"a transfer {transfer_id!r} is already under way.")
        ids.add(transfer_id)

        def forget_then_tell(transfer: Transfer, outcome: Outcome) -> None:
            with self._lock:
                ids.discard(transfer_id)
                if ids is self._receiving:
                    self._expected.pop(transfer_id, None)
            on_done(transfer, outcome)

        return BlockTransfer(transfer_id, block_ids, forget_then_tell, fence)

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError("the transport is closed.")

    # ---- on the loop's thread -------------------------------------------------------------------------

    def _carry(self, peer: Address, transfer: BlockTransfer) -> None:
        with self._lock:
            self._num_starting -= 1
        if transfer.outcome is not None:
            return
        if self._closed:
            transfer.end(OutcomeKind.FAILED, "the transport was closed")
            return
        link = self._outgoing.get(peer.uid)
        if link is None or not link.is_usable:
            link = self._outgoing[peer.uid] = SendLink(self._around, peer)
            self._links.add(link)
            self._tick_while_needed()
        link.add(transfer)

    def _cancel(self, transfer: BlockTransfer) -> None:
        if transfer.outcome is None:
            if transfer.link is not None:
                transfer.link.drop(transfer, "the other side cancelled it")
            transfer.end(OutcomeKind.CANCELLED, "cancelled")

    def _expect(self, transfer_id: str) -> None:
        for link in list(self._links):
            if isinstance(link, ReceiveLink):
                link.look_for(transfer_id)
        self._tick_while_needed()

    def _claim(self, transfer_id: str) -> BlockTransfer | None:
        with self._lock:
            expected = self._expected.pop(transfer_id, None)
        return expected[0] if expected is not None else None

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            logger.warning("a peer's connection was not accepted: %s", error)
            return
        sock.setblocking(False)
        if len(self._links) >= _MAX_RECEIVE_LINKS or self._closed:
            sock.close()
            return
        self._links.add(ReceiveLink(self._around, sock, self._claim))
        self._tick_while_needed()

    def _link_gone(self, link: Link) -> None:
        self._links.discard(link)
        if isinstance(link, SendLink) and self._outgoing.get(link.peer.uid) is link:
            del self._outgoing[link.peer.uid]

    def _tick_while_needed(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        for link in list(self._links):
            link.tick(now)
        with self._lock:
            late = [transfer for transfer, at in self._expected.values() if at <= now]
        for transfer in late:
            transfer.end(OutcomeKind.FAILED, f"no sender came within {self._settings.offer_timeout_s} s")
        with self._lock:
            needed = bool(self._links or self._expected)
        self._ticking = False
        if needed:
            self._tick_while_needed()

    def _shut_down(self) -> list[Link]:
        self._loop.unwatch(self._listener)
        self._listener.close()
        links = list(self._links)
        for link in links:
            link.fail("the transport was closed")
        with self._lock:
            expected = [transfer for transfer, _ in self._expected.values()]
        for transfer in expected:
            transfer.end(OutcomeKind.FAILED, "the transport was closed")
        return links

    def _check(self) -> bool:
        for link in self._links:
            link.check_integrity()
        carried = sum(link.num_transfers for link in self._links)
        with self._lock:
            known = len(self._sending) + len(self._receiving)
            waiting = len(self._expected) + self._num_starting
        if known != carried + waiting:
            raise TransportError(f"{known} transfers are known, but {carried} carried, {waiting} waiting.")
        return True

    def _count(self) -> EndpointUsage:
        with self._lock:
            num_transfers = len(self._sending) + len(self._receiving)
        return EndpointUsage(
            len(self._links),
            num_transfers,
            sum(link.num_busy_slots for link in self._links),
            sum(link.staging_bytes for link in self._links),
        )


class _PeerChannel(Channel):
    def __init__(self, endpoint: BlockEndpoint, peer: Address) -> None:
        self._endpoint = endpoint
        self._peer = peer

    def send(self, transfer_id: str, block_ids: Sequence[int], on_done: OnDone) -> Transfer:
        """See Channel."""
        return self._endpoint.start_send(self._peer, transfer_id, block_ids, on_done)
