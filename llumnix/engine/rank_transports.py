"""The transports of an instance with several workers on one node: every rank sends to the same rank."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import zmq

from llumnix.engine.migration.rank_transport import RankNews, RankTransportOptions
from llumnix.engine.transport import OnDone, Outcome, OutcomeKind, Transfer

_decode_address = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_news = msgspec.msgpack.Decoder(RankNews).decode


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
    """BlockTransports (engine.copies) by calls of the workers. Calls come from the engine thread, `on_done`
    from a thread that listens to the ranks."""

    refusal = None

    def __init__(
        self, call_ranks: Callable[..., list[Any]], num_ranks: int, options: RankTransportOptions
    ) -> None:
        """`call_ranks` is vLLM's Executor.collective_rpc."""
        self._call_ranks = call_ranks
        self._num_ranks = num_ranks
        self._transfers: dict[str, RankTransfer] = {}
        self._lock = threading.Lock()
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
        self._call_ranks("llumnix_cancel_transfer", args=(transfer.transfer_id,))

    def ended(self, transfer_id: str) -> None:
        """See BlockTransports."""
        with self._lock:
            self._transfers.pop(transfer_id, None)
        self._call_ranks("llumnix_transfer_ended", args=(transfer_id,))

    def peer_gone(self, peer: bytes) -> None:
        """See BlockTransports."""
        self._call_ranks("llumnix_peer_gone", args=(_decode_address(peer),))

    def _begin(
        self, way: str, peer: bytes, transfer_id: str, block_ids: Sequence[int], on_done: OnDone
    ) -> Transfer:
        ranks = set(range(self._num_ranks))
        transfer = RankTransfer(transfer_id, block_ids, on_done, ranks)
        with self._lock:
            self._transfers[transfer_id] = transfer
        args = (way, _decode_address(peer), transfer_id, list(block_ids))
        errors = self._call_ranks("llumnix_begin_transfer", args=args)
        for rank, error in enumerate(errors):
            if error:
                self._rank_ended(RankNews(rank, transfer_id, OutcomeKind.FAILED.value, error, 0))
        return transfer

    def _listen(self) -> None:
        while True:
            self._rank_ended(_decode_news(self._socket.recv()))

    def _rank_ended(self, news: RankNews) -> None:
        with self._lock:
            transfer = self._transfers.get(news.transfer_id)
            if transfer is not None:
                transfer.rank_ended(news.rank, OutcomeKind(news.kind), news.reason, news.num_bytes)
