"""What is lost between an instance and an API server shows by the numbers of messages."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from llumnix.core.events import DispatchEntry
from llumnix.frontend.client import ClusterClient
from llumnix.frontend.membership import Membership
from llumnix.frontend.message_order import MessageOrder
from llumnix.wire import TAG_LAST_WORDS, TAG_OUTPUTS, Table, TableEntry, origin


def test_each_instance_has_its_own_numbers_and_a_gap_is_told_once() -> None:
    order = MessageOrder()
    assert [order.take(1, number) for number in (7, 8, 10, 11, 0, 1)] == [True, True, False, True, True, True]
    assert order.take(2, 5)
    order.forget(1)
    assert order.take(1, 40) and not order.take(1, 42)


class Client(ClusterClient):
    """The receiving part of a ClusterClient, with messages that a test makes up."""

    def __init__(self, messages: list[tuple[bytes, bytes, bytes]]) -> None:
        self._order = MessageOrder()
        self.membership = Membership()
        self.membership.apply(Table(1, (TableEntry(DispatchEntry(1, "i1", True), b""),)))
        self.resources = SimpleNamespace(output_socket=self)  # type: ignore[assignment]
        self.decoder = SimpleNamespace(decode=lambda payload: bytes(payload[0].buffer))  # type: ignore[assignment]
        self.did: list[object] = []
        self._left = messages

    async def recv_multipart(self, copy: bool) -> list[Any]:
        if not self._left:
            raise asyncio.CancelledError
        return [SimpleNamespace(buffer=memoryview(frame)) for frame in self._left.pop(0)]

    def _take_outputs(self, outputs: Any) -> None:
        self.did.append(outputs)

    def _drop_instance(self, uid: int, reason: str, *, fenced: bool) -> None:
        self.did.append((uid, reason, fenced))

    def instance_lost(self, uid: int, reason: str) -> None:
        self.did.append((uid, reason))


async def test_lost_output_is_taken_as_if_the_instance_had_forgotten_what_it_ran() -> None:
    messages = [(TAG_OUTPUTS, origin(1, number), b"%d" % number) for number in (0, 1, 3, 4)]
    client = Client([*messages, (TAG_LAST_WORDS, origin(1, 5), b"no more")])
    with pytest.raises(asyncio.CancelledError):
        await client._receive_outputs()
    lost = (1, "output of it was lost on its way", False)
    assert client.did == [b"0", b"1", lost, b"3", b"4", (1, "no more")]
