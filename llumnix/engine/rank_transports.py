"""The transports of an instance with several workers on one node: every rank sends to the same rank."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import zmq

from llumnix.engine.migration.rank_transport import (
    Begin,
    Cancel,
    Ended,
    Order,
    OrdersTaken,
    PeerGone,
    RankNews,
    RankTransportOptions,
    Way,
)
from llumnix.engine.transport import OnDone, Outcome, OutcomeKind, Transfer

_decode_address = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_news = msgspec.msgpack.Decoder(RankNews | OrdersTaken).decode
_NO_RANK = -1


def tell_ranks(executor: Any, method: str, *args: Any) -> None:
    """Have every worker of vLLM's MultiprocExecutor make a call, behind the steps that it was given before.

    For the engine thread. This is collective_rpc without an answer, which would have to be fetched in its
    turn among those of the steps: who fetches it waits for the step that is under way.
    """
    if executor.is_failed:
        return  # a worker is gone, and the loop is about to hear of it
    executor.rpc_broadcast_mq.enqueue((method, args, {}, _NO_RANK))


@dataclass(eq=False)
class RankTransfer(Transfer):
    """One transfer of all ranks. Ends when each has: a rank may still write while another has failed."""

    transfer_id: str
    block_ids: Sequence[int]
    on_done: OnDone = field(repr=False)
    missing: set[int] = field(default_factory=set)
    """Ranks that have not ended."""
    worst: Outcome = field(default_factory=lambda: Outcome(OutcomeKind.DONE, "", 0))
    """Of those that have; bytes are of all together."""

    @property
    def outcome(self) -> Outcome | None:
        return None if self.missing else self.worst

    def rank_ended(self, rank: int, kind: OutcomeKind, reason: str, num_bytes: int) -> None:
        if rank not in self.missing:
            return
        num_bytes += self.worst.num_bytes
        if self.worst.kind is OutcomeKind.DONE:
            self.worst = Outcome(kind, reason and f"rank {rank}: {reason}", num_bytes)
        else:
            self.worst = replace(self.worst, num_bytes=num_bytes)
        self.missing.discard(rank)
        if not self.missing:
            self.on_done(self, self.worst)


class RankTransports:
    """BlockTransports (engine.copies) by orders to the workers, none of which is waited for. Calls come from
    the engine thread, `on_done` from a thread that listens to the ranks.

    Workers take orders between their steps, as they take their steps. Of the few places in the queue to them,
    orders take up one: what comes while some lie there goes together once every rank has taken those.
    """

    refusal = None

    def __init__(
        self,
        call_ranks: Callable[..., list[Any]],
        tell_ranks: Callable[[str, bytes], None],
        num_ranks: int,
        options: RankTransportOptions,
        on_engine_thread: Callable[[Callable[[], object]], None],
    ) -> None:
        """`call_ranks` is vLLM's Executor.collective_rpc, and is called here only; see `tell_ranks` above."""
        self._tell_ranks = tell_ranks
        self._ranks = frozenset(range(num_ranks))
        self._on_engine_thread = on_engine_thread
        self._orders: list[Order] = []
        """Not sent, because others are under way."""
        self._under_way: set[int] = set()
        """Ranks that have yet to take the orders sent last."""
        self._transfers: dict[str, RankTransfer] = {}
        self._lock = threading.Lock()
        """Guards `_transfers`; all else but the socket is the engine thread's."""
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        self._socket.bind(options.news)
        self.address = msgspec.msgpack.encode(
            call_ranks("llumnix_open_transport", args=(msgspec.msgpack.encode(options),))
        )
        threading.Thread(target=self._listen, name="kv-ranks", daemon=True).start()

    def send(self, peer: bytes, transfer_id: str, block_ids: Sequence[int], on_done: OnDone) -> Transfer:
        """See BlockTransports."""
        return self._begin("send", peer, transfer_id, block_ids, on_done)

    def receive(self, peer: bytes, transfer_id: str, block_ids: Sequence[int], on_done: OnDone) -> Transfer:
        """See BlockTransports."""
        return self._begin("receive", peer, transfer_id, block_ids, on_done)

    def cancel(self, transfer: Transfer) -> None:
        """See BlockTransports."""
        self._order(Cancel(transfer.transfer_id))

    def ended(self, transfer_id: str) -> None:
        """See BlockTransports."""
        with self._lock:
            self._transfers.pop(transfer_id, None)
        self._order(Ended(transfer_id))

    def peer_gone(self, peer: bytes) -> None:
        """See BlockTransports."""
        self._order(PeerGone(_decode_address(peer)))

    def _begin(
        self, way: Way, peer: bytes, transfer_id: str, block_ids: Sequence[int], on_done: OnDone
    ) -> Transfer:
        transfer = RankTransfer(transfer_id, block_ids, on_done, set(self._ranks))
        with self._lock:
            self._transfers[transfer_id] = transfer
        self._order(Begin(way, _decode_address(peer), transfer_id, list(block_ids)))
        return transfer

    def _order(self, order: Order) -> None:
        self._orders.append(order)
        if not self._under_way:
            self._send_orders()

    def _send_orders(self) -> None:
        orders, self._orders = self._orders, []
        self._under_way = set(self._ranks)
        self._tell_ranks("llumnix_transport_orders", msgspec.msgpack.encode(orders))

    def _taken(self, rank: int) -> None:
        self._under_way.discard(rank)
        if not self._under_way and self._orders:
            self._send_orders()

    def _listen(self) -> None:
        while True:
            match _decode_news(self._socket.recv()):
                case OrdersTaken(rank):
                    self._on_engine_thread(lambda rank=rank: self._taken(rank))  # type: ignore[misc]
                case RankNews() as news:
                    self._rank_ended(news)

    def _rank_ended(self, news: RankNews) -> None:
        with self._lock:
            transfer = self._transfers.get(news.transfer_id)
            if transfer is not None:
                transfer.rank_ended(news.rank, OutcomeKind(news.kind), news.reason, news.num_bytes)
