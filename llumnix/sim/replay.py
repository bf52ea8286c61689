"""A recorded run seen by another policy: what it would have ordered on the same events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from llumnix.core.events import (
    Action,
    CommandRefused,
    Event,
    KillInstance,
    MoveRequests,
    Record,
    StartInstance,
    StopInstance,
    UnknownInstance,
)
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import SchedulerSettings
from llumnix.event_log import read


@dataclass(frozen=True, slots=True)
class Decision:
    """What an action decides, whatever the reason: two policies agree where these are equal."""

    kind: str
    subject: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A decision that only one of the two policies took on an event."""

    now: float
    side: str
    """"recorded" or "other"."""
    decision: Decision
    reason: str


@dataclass(slots=True)
class Replay:
    """Both policies over one record. They see the same reports: those of what the recorded one did."""

    recorded: str
    other: str
    events: int = 0
    duration_s: float = 0.0
    decisions: dict[str, Counter[str]] = field(default_factory=dict)
    """By side: decisions by kind."""
    differences: list[Difference] = field(default_factory=list)


def replay_file(path: Path, policy: str) -> Replay:
    """Feeds a record to the recorded policy and to `policy`; raises ConfigError for what is no record."""
    recording = read(path)
    settings = recording.settings
    sides = (_Side("recorded", settings), _Side("other", replace(settings, policy=policy)))
    result = Replay(settings.policy, policy, decisions={side.name: side.taken for side in sides})
    started: float | None = None
    for now, event in recording.events:
        started = now if started is None else started
        result.events += 1
        result.duration_s = now - started
        first, second = (side.decisions(event, now) for side in sides)
        for side, own, foreign in ((sides[0], first, second), (sides[1], second, first)):
            result.differences += [
                Difference(now - started, side.name, decision, reason)
                for decision, reason in own.items()
                if decision not in foreign
            ]
    return result


class _Side:
    """A scheduler under one policy, and the orders it has in force."""

    def __init__(self, name: str, settings: SchedulerSettings) -> None:
        self.name = name
        self.taken: Counter[str] = Counter()
        self._scheduler = Scheduler(settings)
        self._orders: dict[int, tuple[int, float]] = {}

    def decisions(self, event: Event, now: float) -> dict[Decision, str]:
        """New decisions on an event, with their reasons."""
        try:
            actions = self._scheduler.handle(event, now)
        except (CommandRefused, UnknownInstance):
            return {}
        decided = dict(self._decided(actions, now))
        self.taken.update(decision.kind for decision in decided)
        return decided

    def _decided(self, actions: list[Action], now: float) -> Iterator[tuple[Decision, str]]:
        for action in actions:
            match action:
                case MoveRequests():
                    former = self._orders.get(action.source)
                    self._orders[action.source] = (action.target, now + action.for_s)
                    # An order that only prolongs one in force is no decision.
                    if former is None or former[0] != action.target or former[1] < now:
                        yield Decision("move", f"{action.source} -> {action.target}"), action.reason
                case StartInstance():
                    yield Decision("start", action.instance), action.reason
                case StopInstance() | KillInstance():
                    yield Decision("stop", action.instance), action.reason
                case Record():
                    yield Decision(action.kind, action.target), action.message
