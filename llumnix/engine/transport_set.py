"""The transports of one instance: for each pair of instances the one that both sides choose alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from llumnix.engine.transport import (
    Channel,
    Endpoint,
    KVBlocks,
    OnDone,
    Transfer,
    TransportError,
    choose,
    default_settings,
    local_facts,
    open_endpoint,
)
from llumnix.engine.transport.choice import Backend, SideFacts, TransportName


class SetAddress(msgspec.Struct, frozen=True):
    """What a peer needs to know of this side; holds the endpoints' secrets."""

    facts: SideFacts
    endpoints: dict[str, bytes]


_decode = msgspec.msgpack.Decoder(SetAddress).decode


class NoTransports:
    """BlockTransports of an instance whose workers are on several nodes, or started by Ray."""

    refusal = "an instance whose workers are not all on its own node does not move requests"
    address = b""

    def send(self, peer: bytes, transfer_id: str, block_ids: Sequence[int], on_done: OnDone) -> Transfer:
        raise TransportError(self.refusal)

    receive = send

    def cancel(self, transfer: Transfer) -> None:
        """There is none."""

    def ended(self, transfer_id: str) -> None:
        """There was none."""

    def peer_gone(self, peer: bytes) -> None:
        """Nothing is kept of it."""


class TransportSet:
    """Opens what may be needed; which one a transfer takes follows from both sides' facts. Any thread."""

    refusal = None

    def __init__(self, blocks: KVBlocks, backend: Backend, host: str, *, one_node: bool) -> None:
        """`host`: the address to listen at; `one_node`: no instance can be on another machine."""
        self._backend = backend
        self._blocks = blocks
        facts = local_facts(blocks)
        self._endpoints: dict[str, Endpoint] = {
            name: open_endpoint(name, blocks, default_settings(name, host))
            for name in _needed(backend, facts, one_node)
        }
        self._own = SetAddress(facts, {name: e.address for name, e in self._endpoints.items()})
        self.address = msgspec.msgpack.encode(self._own)
        self._channels: dict[bytes, Channel] = {}
        """Endpoints forget channels that nobody holds."""
        self._endpoint_of: dict[str, Endpoint] = {}

    def send(self, peer: bytes, transfer_id: str, block_ids: Sequence[int], on_done: OnDone) -> Transfer:
        """See Channel.send; raises TransportError too if no transport works for the pair."""
        address = _decode(peer)
        name = choose(self._backend, self._own.facts, address.facts).transport
        endpoint = self._endpoint(name)
        channel = self._channels[peer] = endpoint.connect(address.endpoints[name])
        self._endpoint_of[transfer_id] = endpoint
        return channel.send(transfer_id, block_ids, on_done)

    def fence(self) -> Any:
        """See KVBlocks.fence."""
        return self._blocks.fence()

    def receive(
        self,
        peer: bytes,
        transfer_id: str,
        block_ids: Sequence[int],
        on_done: OnDone,
        fence: Any = None,
    ) -> Transfer:
        """See Endpoint.receive; raises TransportError too if no transport works for the pair."""
        name = choose(self._backend, _decode(peer).facts, self._own.facts).transport
        endpoint = self._endpoint(name)
        self._endpoint_of[transfer_id] = endpoint
        return endpoint.receive(transfer_id, block_ids, on_done, fence)

    def cancel(self, transfer: Transfer) -> None:
        """See Endpoint.cancel."""
        self._endpoint_of[transfer.transfer_id].cancel(transfer)

    def ended(self, transfer_id: str) -> None:
        """The transfer is over: forget it."""
        self._endpoint_of.pop(transfer_id, None)

    def peer_gone(self, peer: bytes) -> None:
        """Nobody will be at that address again."""
        self._channels.pop(peer, None)

    def close(self) -> None:
        for endpoint in self._endpoints.values():
            endpoint.close()

    def check_integrity(self) -> None:
        for endpoint in self._endpoints.values():
            endpoint.check_integrity()

    def _endpoint(self, name: str) -> Endpoint:
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            raise TransportError(f"this instance has no {name} transport open.")
        return endpoint


def _needed(backend: Backend, facts: SideFacts, one_node: bool) -> list[TransportName]:
    if backend != "auto":
        return [backend]
    if facts.device == "cpu":
        return ["shm"] if one_node else ["shm", "gloo"]
    return ["cuda_ipc", "nccl"]
