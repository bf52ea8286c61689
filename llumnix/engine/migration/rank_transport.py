"""One rank's transports, in the worker's process: under the engine's orders, told of by a socket to it."""

from __future__ import annotations

import threading
from typing import Literal

import msgspec
import torch
import zmq

from llumnix.engine.transport import KVBlocks, Outcome, OutcomeKind, Transfer, TransportError
from llumnix.engine.transport.choice import Backend
from llumnix.engine.transport_set import TransportSet
from llumnix.log import get_logger

logger = get_logger(__name__)

Way = Literal["send", "receive"]


class RankTransportOptions(msgspec.Struct, frozen=True):
    """What every rank of an instance opens its transports with."""

    backend: Backend
    host: str
    one_node: bool
    news: str
    """ZMQ address in the engine's process, for RankNews."""


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Send or receive blocks; RankNews follows in any case. `peer`: the addresses of all ranks over there."""

    way: Way
    peer: list[bytes]
    transfer_id: str
    block_ids: list[int]


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """See BlockTransports.cancel."""

    transfer_id: str


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """See BlockTransports.ended."""

    transfer_id: str


class PeerGone(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """See BlockTransports.peer_gone."""

    peer: list[bytes]


Order = Begin | Cancel | Ended | PeerGone
_decode_orders = msgspec.msgpack.Decoder(list[Order]).decode


class OrdersTaken(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A rank has done what it was told together; what it has begun goes on."""

    rank: int


class RankNews(msgspec.Struct, frozen=True, array_like=True, tag=True):
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

    def take(self, orders: bytes) -> None:
        """Do what the engine asks, in its order (list of Order)."""
        for order in _decode_orders(orders):
            match order:
                case Begin():
                    self._begin(order)
                case Cancel(transfer_id):
                    if (transfer := self._transfers.get(transfer_id)) is not None:
                        self._transports.cancel(transfer)
                case Ended(transfer_id):
                    self._transfers.pop(transfer_id, None)
                    self._transports.ended(transfer_id)
                case PeerGone(peer):
                    self._transports.peer_gone(peer[self._rank])
        self._send(OrdersTaken(self._rank))

    def _begin(self, begin: Begin) -> None:
        peer, transfer_id = begin.peer[self._rank], begin.transfer_id
        start = self._transports.send if begin.way == "send" else self._transports.receive
        try:
            self._transfers[transfer_id] = start(peer, transfer_id, begin.block_ids, self._tell)
        except TransportError as error:
            self._send(RankNews(self._rank, transfer_id, OutcomeKind.FAILED.value, str(error), 0))
        except Exception as error:  # the engine must hear of an end; nothing has begun
            logger.exception("transfer %s cannot begin", transfer_id)
            self._send(RankNews(self._rank, transfer_id, OutcomeKind.FAILED.value, repr(error), 0))

    def _tell(self, transfer: Transfer, outcome: Outcome) -> None:
        news = RankNews(
            self._rank, transfer.transfer_id, outcome.kind.value, outcome.reason, outcome.num_bytes
        )
        self._send(news)

    def _send(self, news: RankNews | OrdersTaken) -> None:
        with self._lock:
            self._news.send(msgspec.msgpack.encode(news))
