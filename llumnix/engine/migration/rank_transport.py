"""One rank's transports, in the worker's process: begun by the engine's calls, told of by a socket to it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Literal

import msgspec
import torch
import zmq

from llumnix.engine.transport import KVBlocks, Outcome, Transfer, TransportError
from llumnix.engine.transport.choice import Backend
from llumnix.engine.transport_set import TransportSet


class RankTransportOptions(msgspec.Struct, frozen=True):
    """What every rank of an instance opens its transports with."""

    backend: Backend
    host: str
    one_node: bool
    news: str
    """ZMQ address in the engine's process, for RankNews."""


class RankNews(msgspec.Struct, frozen=True, array_like=True):
    """A transfer ended at one rank; fields of Outcome."""

    rank: int
    transfer_id: str
    kind: str
    reason: str
    num_bytes: int


class RankTransport:
    """Calls come from the worker's thread; `on_done` of the transports from theirs."""

    def __init__(self, rank: int, views: list[torch.Tensor], options: RankTransportOptions) -> None:
        self._rank = rank
        blocks = KVBlocks(views, views[0].shape[0])
        self._transports = TransportSet(blocks, options.backend, options.host, one_node=options.one_node)
        self._transfers: dict[str, Transfer] = {}
        self._news: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        self._news.connect(options.news)
        self._lock = threading.Lock()
        """Guards `_news`, which several threads of transports use."""

    @property
    def address(self) -> bytes:
        return self._transports.address

    def begin(
        self, way: Literal["send", "receive"], peer: bytes, transfer_id: str, block_ids: Sequence[int]
    ) -> str:
        """See BlockTransports; why it could not begin, or nothing."""
        start = self._transports.send if way == "send" else self._transports.receive
        try:
            self._transfers[transfer_id] = start(peer, transfer_id, block_ids, self._tell)
        except TransportError as error:
            return str(error)
        return ""

    def cancel(self, transfer_id: str) -> None:
        transfer = self._transfers.get(transfer_id)
        if transfer is not None:
            self._transports.cancel(transfer)

    def ended(self, transfer_id: str) -> None:
        self._transfers.pop(transfer_id, None)
        self._transports.ended(transfer_id)

    def peer_gone(self, peer: bytes) -> None:
        self._transports.peer_gone(peer)

    def _tell(self, transfer: Transfer, outcome: Outcome) -> None:
        news = RankNews(
            self._rank, transfer.transfer_id, outcome.kind.value, outcome.reason, outcome.num_bytes
        )
        with self._lock:
            self._news.send(msgspec.msgpack.encode(news))
