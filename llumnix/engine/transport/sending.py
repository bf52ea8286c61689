"""The sending end of a connection: offers transfers, keeps the slots filled, in turn for all transfers."""

from __future__ import annotations

import collections
import hmac
import secrets
import time

from llumnix.engine.transport.base import OutcomeKind, TransportError
from llumnix.engine.transport.chunks import ChunkPlan
from llumnix.engine.transport.control import ControlSocket
from llumnix.engine.transport.link import Carried, Link, Surroundings, out_of_place
from llumnix.engine.transport.messages import (
    PROTOCOL_VERSION,
    Accept,
    Address,
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


class SendLink(Link):
    """Opens with the first transfer; transfers that come meanwhile wait in it."""

    sends = True

    def __init__(self, around: Surroundings, peer: Address) -> None:
        super().__init__(around)
        settings = around.settings
        self.peer = peer
        self._geometry = Geometry(
            settings.chunk_bytes, settings.num_slots, settings.open_timeout_s, settings.peer_timeout_s
        )
        self._nonce = secrets.token_bytes(16)
        self._own_plane_open = self._peer_plane_open = False
        self._last_number = 0
        self._turns: collections.deque[Carried] = collections.deque()
        """Accepted transfers with chunks left, the next in turn first; may hold ended ones."""
        self._free_slots = list(range(settings.num_slots))
        """Free and busy slots are disjoint and make up all."""
        self._control = ControlSocket.connect(
            around.loop, peer.family, (peer.host, peer.port), self._on_message, self._on_end
        )
        self._send(Hello(PROTOCOL_VERSION, peer.transport, self._nonce))

    def add(self, transfer: BlockTransfer) -> None:
        """Carries a transfer; it ends by itself."""
        self._begin_use()
        plan = ChunkPlan(
            len(transfer.block_ids), self._around.blocks.bytes_per_block, self._geometry.chunk_bytes
        )
        self._last_number += 1
        transfer.link, transfer.number = self, self._last_number
        self._transfers[transfer.number] = Carried(transfer, plan)
        if self._is_open:
            self._offer(transfer)

    def drop(self, transfer: BlockTransfer, reason: str) -> None:
        """See Link."""
        if self._transfers.pop(transfer.number, None) is not None:
            self._last_used = time.monotonic()
            if self._is_open:
                self._send(Stop(transfer.number, reason))

    def tick(self, now: float) -> None:
        """Also says goodbye after idle_close_s without transfers."""
        super().tick(now)
        idle = self._is_open and not self._transfers and not self._busy_slots
        if idle and now - self._last_used > self._around.settings.idle_close_s:
            self._send(Bye())
            self._ending = "it was idle"
            self._is_open = False
            self._around.loop.call_later(self._around.settings.peer_timeout_s, self._stop_waiting)

    def check_integrity(self) -> None:
        """See Link."""
        slots = sorted([*self._free_slots, *self._busy_slots])
        if slots != list(range(self._geometry.num_slots)):
            raise TransportError(f"staging slots are lost or doubled: {slots}.")
        super().check_integrity()

    def _handle(self, message: Message) -> None:
        match message:
            case Challenge():
                self._answer(message)
            case Welcome() if self._worker is None:
                self._start_worker(self._geometry)
            case Refused():
                self.fail(message.reason)
            case Ready():
                self._peer_plane_open = True
                self._open_if_both()
            case Accept():
                self._accepted(message.number)
            case Decline() | Stop():
                self._given_up(message.number, message.reason)
            case Taken():
                self._taken(message)
            case _:
                raise out_of_place(message)

    def _answer(self, challenge: Challenge) -> None:
        secret, nonces = self.peer.secret, (self._nonce, challenge.nonce)
        if not hmac.compare_digest(challenge.proof, proof(secret, b"receiver", *nonces)):
            raise TransportError("the peer is not the endpoint whose address was given")
        own = proof(secret, b"sender", *nonces)
        fingerprint = self._around.blocks.fingerprint
        self._send(Begin(own, fingerprint, self._geometry.chunk_bytes, self._geometry.num_slots))

    def _opened(self) -> None:
        self._own_plane_open = True
        self._open_if_both()

    def _open_if_both(self) -> None:
        if self._own_plane_open and self._peer_plane_open and not self._is_open:
            self._is_open = True
            self._last_used = time.monotonic()
            for sending in self._transfers.values():
                self._offer(sending.transfer)

    def _offer(self, transfer: BlockTransfer) -> None:
        self._send(Offer(transfer.number, transfer.transfer_id, len(transfer.block_ids)))

    def _accepted(self, number: int) -> None:
        sending = self._transfers.get(number)
        if sending is None:  # dropped meanwhile; the peer has been told
            return
        if not sending.plan.num_chunks:
            self._finish(sending, OutcomeKind.DONE)
            return
        self._turns.append(sending)
        self._fill_slots()

    def _given_up(self, number: int, reason: str) -> None:
        if (sending := self._transfers.get(number)) is not None:
            self._finish(sending, OutcomeKind.FAILED, reason)

    def _finish(self, sending: Carried, kind: OutcomeKind, reason: str = "") -> None:
        del self._transfers[sending.transfer.number]
        self._last_used = time.monotonic()
        sending.transfer.end(kind, reason)

    def _fill_slots(self) -> None:
        while self._free_slots and self._turns and self._worker is not None:
            sending = self._turns.popleft()
            transfer = sending.transfer
            if transfer.outcome is not None:
                continue
            index = sending.next_chunk
            sending.next_chunk += 1
            if sending.next_chunk < sending.plan.num_chunks:
                self._turns.append(sending)
            slot = self._free_slots.pop()
            self._busy_slots[slot] = transfer.number
            chunk = sending.plan.chunk(index)
            self._worker.submit(Job(transfer, index, slot, chunk.num_bytes, chunk))

    def _copied(self, job: Job, staged: bool) -> None:
        if staged and job.transfer is not None:
            self._send(Staged(job.transfer.number, job.index, job.slot, job.num_bytes))
        else:
            self._release(job.slot)

    def _taken(self, message: Taken) -> None:
        if self._busy_slots.get(message.slot) != message.number:
            raise out_of_place(message)
        sending = self._transfers.get(message.number)
        if sending is not None:
            sending.num_taken += 1
            if sending.num_taken == sending.plan.num_chunks:
                self._finish(sending, OutcomeKind.DONE)
        self._release(message.slot)

    def _release(self, slot: int) -> None:
        del self._busy_slots[slot]
        self._free_slots.append(slot)
        self._fill_slots()

    def _on_end(self, reason: str) -> None:
        if self._ending is not None:  # the peer has closed its side after our goodbye
            self._end(self._ending, clean=True)
        else:
            self.fail(reason)

    def _stop_waiting(self) -> None:
        """No answer to the goodbye."""
        if not self._gone:
            self._end("the peer did not answer", clean=False)
