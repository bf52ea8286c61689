"""An API server of the simulated cluster: llumnix.core's dispatcher and hold queue on late reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llumnix.core.choice import Hold
from llumnix.core.dispatch import Dispatcher
from llumnix.core.events import HeldRequests, PublishTable
from llumnix.core.hold_queue import HeldRequest, HoldQueue
from llumnix.core.load import InstanceReport
from llumnix.core.prefixes import prefix_keys
from llumnix.sim.records import SimRequest

LOOK_INTERVAL_S = 0.005
"""While it holds requests, an API server looks this often for reports that show room."""
SUMMARY_INTERVAL_S = 0.050


class SimApiServer:
    """Places requests as llumnix.frontend.client does; what needs the clock goes through the callables."""

    def __init__(
        self,
        index: int,
        dispatcher: Dispatcher,
        overtake_s: float,
        *,
        reports: Callable[[], Iterable[InstanceReport]],
        send: Callable[[SimRequest, int, int], None],
        tell_manager: Callable[[HeldRequests], None],
    ) -> None:
        """`reports`: the newest that have come; `send(request, api server, uid)`."""
        self._index = index
        self._dispatcher = dispatcher
        self._queue = HoldQueue(overtake_s)
        self._reports = reports
        self._send = send
        self._tell_manager = tell_manager
        self._held: dict[str, SimRequest] = {}
        self._seen: dict[int, InstanceReport] = {}
        self._told = self._queue.summary(index)
        self._told_at = -SUMMARY_INTERVAL_S

    @property
    def holds(self) -> bool:
        return bool(self._held)

    def set_table(self, table: PublishTable, now: float) -> None:
        self._dispatcher.set_table(table.entries)
        self.look(now)

    def arrive(self, request: SimRequest, now: float) -> None:
        key = str(request.id)
        self._held[key] = request
        prefix = prefix_keys(request.prompt_token_ids()) if request.prefix_group is not None else ()
        self._queue.push(key, request.priority, request.prompt_tokens, now, prefix)
        self.look(now)

    def look(self, now: float) -> None:
        """Take in the newest reports and send what has room now."""
        for report in self._reports():
            if self._seen.get(report.uid) is not report:
                self._seen[report.uid] = report
                self._dispatcher.observe(report)
        self._queue.place(self._place, now)
        self._summarize(now)

    def _place(self, held: HeldRequest) -> bool:
        choice = self._dispatcher.choose(held.num_tokens, held.engine_priority, prefix=held.prefix)
        if isinstance(choice, Hold):
            return False
        self._send(self._held.pop(held.key), self._index, choice.uid)
        self._dispatcher.sent(choice.uid, held.num_tokens, held.engine_priority, held.prefix)
        return True

    def _summarize(self, now: float) -> None:
        summary = self._queue.summary(self._index)
        if summary != self._told and now >= self._told_at + SUMMARY_INTERVAL_S:
            self._told, self._told_at = summary, now
            self._tell_manager(summary)
