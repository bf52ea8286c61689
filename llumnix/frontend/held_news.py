"""Tells the manager what an API server holds until an instance has room."""

from __future__ import annotations

from collections.abc import Callable

from vllm.v1.engine import EngineCoreRequest

from llumnix.core.handover.epochs import engine_id
from llumnix.core.handover.owner_events import StartAttempt
from llumnix.core.hold_queue import HoldQueue
from llumnix.frontend.request_book import RequestBook
from llumnix.wire import Held, RequestRow

_ROWS_EVERY_S = 0.5


class HeldNews:
    """The queue's figures whenever they have changed, all of its rows only now and then."""

    def __init__(self, api_server: int, held: HoldQueue, book: RequestBook) -> None:
        self._api_server = api_server
        self._held = held
        self._book = book
        self._told = held.summary(api_server)
        self._are_rows_due = False
        self._rows_not_before = 0.0
        self.send: Callable[[Held], None] = lambda news: None

    def tell(self, now: float) -> None:
        """Call it some times a second."""
        summary = self._held.summary(self._api_server)
        has_changed = summary != self._told
        self._told = summary
        if (has_changed or self._are_rows_due) and now >= self._rows_not_before:
            self._are_rows_due, self._rows_not_before = False, now + _ROWS_EVERY_S
            self.tell_rows()
        elif has_changed:
            self._are_rows_due = True
            self.send(Held(summary, None))

    def tell_rows(self) -> None:
        """Everything as of now."""
        rows = tuple(_row(request, attempt) for request, attempt in self._book.held())
        self.send(Held(self._held.summary(self._api_server), rows))


def _row(request: EngineCoreRequest, attempt: StartAttempt) -> RequestRow:
    return RequestRow(
        request_id=engine_id(request.request_id, attempt.epoch),
        priority=request.priority,
        running=False,
        prompt_tokens=len(request.prompt_token_ids or ()),
        output_tokens=len(attempt.output_tokens),
        kv_blocks=0,
        arrival_s=request.arrival_time,
        api_server=request.client_index,
        preemptions=0,
    )
