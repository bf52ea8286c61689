"""The receiving end of a connection: admits the peer, matches offers with what is expected, takes chunks."""

from __future__ import annotations

import hmac
import secrets
import socket
import time
from collections.abc import Callable

from llumnix.engine.transport.base import OutcomeKind
from llumnix.engine.transport.chunks import ChunkPlan
from llumnix.engine.transport.control import ControlSocket
from llumnix.engine.transport.link import Carried, Link, Surroundings, out_of_place
from llumnix.engine.transport.messages import (
    PROTOCOL_VERSION,
    Accept,
    Begin,
    Bye,
    Challenge,
    Decline,
    Hello,
    Message,
    Offer,
    Ready,
    Refused,
    Staged,
    Stop,
    Taken,
    Welcome,
    proof,
)
from llumnix.engine.transport.plane import Geometry
from llumnix.engine.transport.transfer import BlockTransfer
from llumnix.engine.transport.worker import Job

_MAX_OFFERS = 64
"""Of one peer that this side does not expect yet; many times what the llumlet's limits let come."""


class ReceiveLink(Link):
    """Made by an accepted socket; the peer must prove at once that it was told this endpoint's address."""

    sends = False

    def __init__(
        self,
        around: Surroundings,
        sock: socket.socket,
        claim: Callable[[str], BlockTransfer | None],
    ) -> None:
        super().__init__(around)
        self._claim = claim
        self._nonces: tuple[bytes, bytes] | None = None
        self._geometry: Geometry | None = None
        self._offers: dict[str, tuple[Offer, float]] = {}
        """By transfer id, what this side does not expect yet, and when it is declined."""
        self._control = ControlSocket(around.loop, sock, self._on_message, self._on_end)

    def drop(self, transfer: BlockTransfer, reason: str) -> None:
        """See Link."""
        if self._transfers.pop(transfer.number, None) is not None:
            self._send(Stop(transfer.number, reason))

    def _handle(self, message: Message) -> None:
        match message:
            case Hello() if self._nonces is None:
                self._greet(message)
            case Begin() if self._nonces is not None and self._geometry is None:
                self._begin(message, self._nonces)
            case Offer() if self._is_open:
                self._offered(message)
            case Staged() if self._is_open:
                self._staged(message)
            case Stop() if self._is_open:
                self._given_up(message)
            case Bye() if self._is_open and not self._busy_slots and not self._transfers:
                self._end("the peer closed it", clean=True)
            case _:
                raise out_of_place(message)

    def _greet(self, hello: Hello) -> None:
        own = self._around.address
        if hello.version != PROTOCOL_VERSION:
            self._refuse(f"the receiver speaks version {PROTOCOL_VERSION}, not {hello.version}")
        elif hello.transport != own.transport:
            self._refuse(f"the receiver's transport is {own.transport}, not {hello.transport}")
        else:
            self._nonces = (hello.nonce, secrets.token_bytes(16))
            self._send(Challenge(self._nonces[1], proof(own.secret, b"receiver", *self._nonces)))

    def _begin(self, begin: Begin, nonces: tuple[bytes, bytes]) -> None:
        settings = self._around.settings
        if not hmac.compare_digest(begin.proof, proof(self._around.address.secret, b"sender", *nonces)):
            self._refuse("the sender does not know the receiver's secret")
        elif begin.fingerprint != self._around.blocks.fingerprint:
            self._refuse("the two sides' KV cache layouts differ")
        elif begin.num_slots < 1 or not 4096 <= begin.chunk_bytes <= settings.max_staging_bytes:
            self._refuse(f"chunks of {begin.chunk_bytes} bytes are not taken")
        elif begin.num_slots * begin.chunk_bytes > settings.max_staging_bytes:
            self._refuse(f"the sender asks for more staging than {settings.max_staging_bytes} bytes")
        else:
            self._geometry = Geometry(
                begin.chunk_bytes, begin.num_slots, settings.open_timeout_s, settings.peer_timeout_s
            )
            self._send(Welcome())
            self._start_worker(self._geometry)

    def _refuse(self, reason: str) -> None:
        self._send(Refused(reason))
        self.fail(reason)

    def _opened(self) -> None:
        self._is_open = True
        self._send(Ready())

    def _offered(self, offer: Offer) -> None:
        transfer = self._claim(offer.transfer_id)
        if transfer is None:
            self._keep(offer)
        else:
            self._take(offer, transfer)

    def _keep(self, offer: Offer) -> None:
        if len(self._offers) >= _MAX_OFFERS or offer.transfer_id in self._offers:
            self._send(Decline(offer.number, "the receiver expects no such transfer"))
            return
        declined_at = time.monotonic() + self._around.settings.offer_timeout_s
        self._offers[offer.transfer_id] = (offer, declined_at)

    def look_for(self, transfer_id: str) -> None:
        """This side expects it now: the peer may have offered it already."""
        if transfer_id not in self._offers:
            return
        transfer = self._claim(transfer_id)
        if transfer is not None:
            offer, _ = self._offers.pop(transfer_id)
            self._take(offer, transfer)

    def tick(self, now: float) -> None:
        """Also declines what nobody here has come to expect."""
        super().tick(now)
        for transfer_id, (offer, declined_at) in list(self._offers.items()):
            if declined_at <= now:
                del self._offers[transfer_id]
                self._send(Decline(offer.number, "the receiver expects no such transfer"))

    def _take(self, offer: Offer, transfer: BlockTransfer) -> None:
        assert self._geometry is not None, "offers come once it is open"
        if offer.num_blocks != len(transfer.block_ids):
            reason = f"{offer.num_blocks} blocks were offered, {len(transfer.block_ids)} are expected"
            self._send(Decline(offer.number, reason))
            transfer.end(OutcomeKind.FAILED, reason)
            return
        self._send(Accept(offer.number))
        plan = ChunkPlan(offer.num_blocks, self._around.blocks.bytes_per_block, self._geometry.chunk_bytes)
        if not plan.num_chunks:
            transfer.end(OutcomeKind.DONE)
            return
        self._begin_use()
        transfer.link, transfer.number = self, offer.number
        self._transfers[offer.number] = Carried(transfer, plan)

    def _staged(self, staged: Staged) -> None:
        """What has been dropped is pulled too: its bytes are in the pipe, and the slot must come back."""
        geometry, worker = self._geometry, self._worker
        receiving = self._transfers.get(staged.number)
        if geometry is None or worker is None or staged.slot in self._busy_slots:
            raise out_of_place(staged)
        if not (0 <= staged.slot < geometry.num_slots and 0 < staged.num_bytes <= geometry.chunk_bytes):
            raise out_of_place(staged)
        self._busy_slots[staged.slot] = staged.number
        if receiving is None:
            worker.submit(Job(None, staged.index, staged.slot, staged.num_bytes, None))
            return
        if staged.index != receiving.next_chunk or staged.index >= receiving.plan.num_chunks:
            raise out_of_place(staged)
        chunk = receiving.plan.chunk(staged.index)
        if chunk.num_bytes != staged.num_bytes:
            raise out_of_place(staged)
        receiving.next_chunk += 1
        worker.submit(Job(receiving.transfer, staged.index, staged.slot, staged.num_bytes, chunk))

    def _copied(self, job: Job, staged: bool) -> None:
        number = self._busy_slots.pop(job.slot)
        self._send(Taken(number, job.slot))
        receiving = self._transfers.get(number)
        if receiving is not None:
            receiving.num_taken += 1
            if receiving.num_taken == receiving.plan.num_chunks:
                del self._transfers[number]
                receiving.transfer.end(OutcomeKind.DONE)

    def _given_up(self, stop: Stop) -> None:
        receiving = self._transfers.pop(stop.number, None)
        if receiving is not None:
            receiving.transfer.end(OutcomeKind.FAILED, stop.reason)
            return
        self._offers = {i: kept for i, kept in self._offers.items() if kept[0].number != stop.number}

    def _take_transfers(self) -> list[BlockTransfer]:
        self._offers.clear()
        return super()._take_transfers()
