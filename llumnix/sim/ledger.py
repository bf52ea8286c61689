"""What becomes of each request of a run, as its client would see it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llumnix.core.handover.epochs import Epoch, engine_id, split_engine_id
from llumnix.sim.records import RequestResult, SimRequest

_FIRST = Epoch(1, 0)


@dataclass(slots=True)
class Entry:
    request: SimRequest
    first_token_s: float | None = None
    finish_s: float | None = None
    lost_since: float | None = None
    """End of the step that preempted it: it would have made a token then."""
    loss_s: float = 0.0
    preemptions: int = 0
    instances: list[int] = field(default_factory=list)


class Ledger:
    """Books of all requests of one run. Invariant: a finished request is told of no more."""

    def __init__(self, workload: Sequence[SimRequest]) -> None:
        self._entries = {str(request.id): Entry(request) for request in workload}
        self._num_unfinished = len(self._entries)
        self.preemptions = 0
        self.last_finish_s = 0.0

    @property
    def is_over(self) -> bool:
        return self._num_unfinished == 0

    def engine_id(self, request: SimRequest) -> str:
        """The id under which it runs where it is sent."""
        return engine_id(str(request.id), _FIRST)

    def placed(self, request: SimRequest, uid: int) -> None:
        self._entries[str(request.id)].instances.append(uid)

    def adopted(self, request_id: str, uid: int) -> None:
        """It goes on at another instance; `request_id` without its epoch."""
        self._entries[request_id].instances.append(uid)

    def step_ended(
        self, now: float, with_token: Iterable[str], finished: Iterable[str], preempted: Iterable[str]
    ) -> None:
        """One step's outcome by engine-side ids; not needed of steps that bring nothing but tokens."""
        for known in preempted:
            entry = self._entry(known)
            entry.preemptions += 1
            self.preemptions += 1
            if entry.lost_since is None:
                entry.lost_since = now
        for known in with_token:
            entry = self._entry(known)
            if entry.first_token_s is None:
                entry.first_token_s = now
            if entry.lost_since is not None:
                entry.loss_s += now - entry.lost_since
                entry.lost_since = None
        for known in finished:
            entry = self._entry(known)
            assert entry.finish_s is None, known
            entry.finish_s = self.last_finish_s = now
            self._num_unfinished -= 1

    def unfinished(self) -> list[int]:
        """Ids of the requests that have not finished."""
        return [entry.request.id for entry in self._entries.values() if entry.finish_s is None]

    def results(self) -> tuple[RequestResult, ...]:
        """Of every request, by id; all must have finished."""
        entries = sorted(self._entries.values(), key=lambda entry: entry.request.id)
        return tuple(_result(entry) for entry in entries)

    def _entry(self, known: str) -> Entry:
        return self._entries[split_engine_id(known)[0]]


def _result(entry: Entry) -> RequestResult:
    request = entry.request
    assert entry.first_token_s is not None and entry.finish_s is not None
    return RequestResult(
        id=request.id,
        arrival_s=request.arrival_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        priority=request.priority,
        first_token_s=entry.first_token_s,
        finish_s=entry.finish_s,
        preemptions=entry.preemptions,
        preemption_loss_s=entry.loss_s,
        migrations=len(entry.instances) - 1,
        instances=tuple(entry.instances),
    )
