"""Dispatch: which instance gets the next request. Each API server process has a Dispatcher of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from llumnix.core.choice import Admission, Choice, Hold
from llumnix.core.dispatch_rules import RULES
from llumnix.core.events import DispatchEntry
from llumnix.core.load import Headroom, InstanceReport
from llumnix.core.outlook import Outlook
from llumnix.core.prefixes import CHUNK_TOKENS

__all__ = ["RULES", "Dispatcher"]

# Stands in for the size of an instance while none has reported; only the order of scores matters then.
_NOMINAL = InstanceReport(
    uid=-1, seq=-1, block_size=16, total_blocks=1024, used_blocks=0, max_running=256, running=0, waiting=0
)


_NO_PRIORITY = 1 << 62
"""Stands for every class without headroom."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A request that looks for a place."""

    num_tokens: int
    priority: int
    prefix: Sequence[int]
    exclude: Collection[int]
    resumed: bool


class Dispatcher:
    """Chooses instances by a named rule on the latest reports plus exactly what this server sent since.

    Not thread-safe; all methods are quick (a choice over 64 instances: some 10 microseconds). An instance
    that has not reported yet counts as empty and as large as the one that reported last. A paused instance is
    chosen only when every candidate is. Ties go round, from a different instance for each `server_index`.
    """

    def __init__(
        self,
        rule: str,
        *,
        headroom: Mapping[int, Headroom],
        api_servers: int,
        server_index: int,
        admission: Admission | None = None,
        prefix_reach: float = 1.0,
    ) -> None:
        """Without `admission` no request is held while an instance is open; `prefix_reach`: see settings."""
        if rule not in RULES:
            raise ValueError(f"unknown dispatch rule {rule!r}; known are {', '.join(RULES)}")
        if not 0 <= server_index < api_servers:
            raise ValueError(f"server_index {server_index} is not one of {api_servers} API servers")
        self.rule = rule
        self._score = RULES[rule]
        self._headroom = dict(headroom)
        self._with_headroom = {priority for priority, room in headroom.items() if room != Headroom()}
        self._admission = admission
        self._prefix_reach = prefix_reach
        self._api_servers = api_servers
        self._server_index = server_index
        self._outlooks: dict[int, Outlook] = {}
        self._removed: set[int] = set()
        self._awake: list[Outlook] = []
        self._paused: list[Outlook] = []
        self._refuges: list[Outlook] = []
        self._num_choices = 0
        self._num_queued = 0
        self._latest = _NOMINAL

    def set_table(self, entries: Iterable[DispatchEntry]) -> None:
        """Take over the cluster manager's table: new instances come in, absent ones are forgotten."""
        table = {entry.uid: entry for entry in entries}
        for uid in self._outlooks.keys() - table.keys():
            self._forget(uid)
        # This server may know of a death before the manager does; a late table must not bring the dead back.
        self._removed &= table.keys()
        level = min((o.num_dispatched for o in self._outlooks.values() if o.entry.open), default=0)
        for uid, entry in table.items():
            if uid not in self._removed:
                self._place(entry, level)
        self._sort_candidates()

    def _place(self, entry: DispatchEntry, level: int) -> None:
        known = self._outlooks.get(entry.uid)
        opened = entry.open and (known is None or not known.entry.open)
        if known is None:
            known = self._outlooks[entry.uid] = Outlook(entry, self._empty(entry.uid), self._headroom)
        known.entry = entry
        if opened:
            # Else round robin would make up for the time when the instance was not there, all at once.
            known.num_dispatched = max(known.num_dispatched, level)
        self._refresh(known)

    def _empty(self, uid: int) -> InstanceReport:
        size = self._latest
        return replace(
            _NOMINAL,
            uid=uid,
            block_size=size.block_size,
            total_blocks=size.total_blocks,
            max_running=size.max_running,
        )

    def observe(self, report: InstanceReport) -> None:
        """Take a report; one that is stale or of an unknown instance changes nothing."""
        outlook = self._outlooks.get(report.uid)
        if outlook is None or (outlook.reported and report.seq <= outlook.report.seq):
            return
        paused_changed = report.paused != outlook.report.paused
        outlook.observe(report, self._server_index)
        self._latest = report
        self._refresh(outlook)
        if paused_changed:
            self._sort_candidates()

    def remove(self, uid: int) -> None:
        """Forget an instance that is dead; no later table brings it back."""
        self._removed.add(uid)
        if uid in self._outlooks:
            self._forget(uid)
            self._sort_candidates()

    def reset_sent(self, uid: int) -> None:
        """The connection to the instance was made again: it counts what it takes in from 0."""
        outlook = self._outlooks.get(uid)
        if outlook is not None:
            outlook.reset_sent()
            self._refresh(outlook)

    def choose(
        self,
        prompt_tokens: int,
        engine_priority: int,
        *,
        prefix: Sequence[int] = (),
        exclude: Collection[int] = (),
        resumed: bool = False,
    ) -> Choice | Hold:
        """Choose among the open instances that are not in `exclude`; call `sent` once the request is sent.

        `prefix` has the keys of the prompt's beginning (core.prefixes). One that is `resumed`, as it has lost
        its instance, goes to a refuge where no instance is open.
        """
        wanted = _Wanted(prompt_tokens, engine_priority, prefix, exclude, resumed)
        best = self._best(self._awake, wanted)
        if best is None and all(outlook.entry.uid in exclude for outlook in self._awake):
            best = self._best(self._paused, wanted)
        if best is None and resumed and not self._is_any_open(exclude):
            best = self._best(self._refuges, wanted)
        if best is None:
            return self._hold(wanted)
        chosen = self._with_prefix(best, wanted) if prefix and self._prefix_reach > 1 else best
        self._num_choices += 1
        return Choice(
            uid=chosen.entry.uid,
            instance=chosen.entry.instance,
            rule=self.rule,
            score=self._score_for(chosen, engine_priority),
            best_score=self._score_for(best, engine_priority),
            num_candidates=len(self._awake) or len(self._paused) or len(self._refuges),
            report=chosen.report if chosen.reported else None,
            num_unseen=len(chosen.unseen),
            num_cached_tokens=chosen.prefixes.num_known(prefix) * CHUNK_TOKENS,
        )

    def _hold(self, wanted: _Wanted) -> Hold:
        num_open = len(self._awake) + len(self._paused)
        is_any_open = self._is_any_open(wanted.exclude)
        is_any_refuge = any(o.entry.uid not in wanted.exclude for o in self._refuges)
        may_take_it = is_any_open or (wanted.resumed and is_any_refuge)
        what = "no instance has room" if may_take_it else "no open instance"
        return Hold(
            f"{what} for a request of {wanted.num_tokens} tokens and priority {wanted.priority}: "
            f"{len(self._outlooks)} known, {num_open} open, {len(wanted.exclude)} excluded",
            is_any_open,
            is_any_refuge,
        )

    def _is_any_open(self, exclude: Collection[int]) -> bool:
        return any(o.entry.uid not in exclude for o in chain(self._awake, self._paused))

    def _best(self, candidates: list[Outlook], wanted: _Wanted) -> Outlook | None:
        if not candidates:
            return None
        num = len(candidates)
        first = (num * self._server_index // self._api_servers + self._num_choices) % num
        best, best_score = None, 0.0
        for outlook in candidates[first:] + candidates[:first]:
            score = self._score_for(outlook, wanted.priority)
            if best is not None and score <= best_score:
                continue
            if outlook.entry.uid not in wanted.exclude and self._has_room(outlook, wanted.num_tokens):
                best, best_score = outlook, score
        return best

    def _score_for(self, outlook: Outlook, priority: int) -> float:
        """Kept until something changes there; each of the classes with headroom sees another."""
        if priority in self._with_headroom:
            return self._score(outlook, self._api_servers, priority)
        return outlook.score

    def _with_prefix(self, best: Outlook, wanted: _Wanted) -> Outlook:
        """Where most of the prompt's beginning is, among those that are nearly as good as the best."""
        prefix, best_score = wanted.prefix, self._score_for(best, wanted.priority)
        least = best_score / self._prefix_reach
        most = best.prefixes.num_known(prefix)
        for outlook in self._awake:
            seen = outlook.prefixes
            longer = most < len(prefix) and prefix[most] in seen
            if not longer and not (most > 0 and prefix[most - 1] in seen):
                continue
            score = self._score_for(outlook, wanted.priority)
            if score < least or not (longer or score > best_score) or outlook.entry.uid in wanted.exclude:
                continue
            if self._has_room(outlook, wanted.num_tokens):
                best, best_score, most = outlook, score, seen.num_known(prefix, at_least=most)
        return best

    def _has_room(self, outlook: Outlook, prompt_tokens: int) -> bool:
        return self._admission is None or self._admission.admits(outlook, prompt_tokens, self._api_servers)

    def sent(self, uid: int, prompt_tokens: int, engine_priority: int, prefix: Sequence[int] = ()) -> None:
        """Count a request that was sent to an instance, until a report of the instance covers it."""
        outlook = self._outlooks.get(uid)
        if outlook is not None:
            outlook.send(prompt_tokens, engine_priority)
            if self._prefix_reach > 1:
                outlook.note_prefix(prefix)
            self._refresh(outlook)

    def queued(self) -> int:
        """Requests waiting on all known instances, with those this server sent since that find no room."""
        return self._num_queued

    def _refresh(self, outlook: Outlook) -> None:
        outlook.score = self._score(outlook, self._api_servers, _NO_PRIORITY)
        self._num_queued -= outlook.queued
        outlook.queued = outlook.num_queued()
        self._num_queued += outlook.queued

    def _forget(self, uid: int) -> None:
        self._num_queued -= self._outlooks.pop(uid).queued

    def _sort_candidates(self) -> None:
        # By uid, so that every server goes round in one order and different starts stay different.
        candidates = [self._outlooks[uid] for uid in sorted(self._outlooks) if self._outlooks[uid].entry.open]
        self._awake = [outlook for outlook in candidates if not outlook.report.paused]
        self._paused = [outlook for outlook in candidates if outlook.report.paused]
        refuges = [self._outlooks[uid] for uid in sorted(self._outlooks) if self._outlooks[uid].entry.refuge]
        self._refuges = [outlook for outlook in refuges if not outlook.report.paused] or refuges

    def check_integrity(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        for outlook in self._outlooks.values():
            outlook.check_integrity()
            assert outlook.score == self._score(outlook, self._api_servers, _NO_PRIORITY)
        assert self._num_queued == sum(outlook.num_queued() for outlook in self._outlooks.values())
        candidates = {outlook.entry.uid for outlook in self._awake + self._paused}
        assert candidates == {uid for uid, outlook in self._outlooks.items() if outlook.entry.open}
        assert all(outlook.entry.refuge and not outlook.entry.open for outlook in self._refuges)
        assert bool(self._refuges) == any(outlook.entry.refuge for outlook in self._outlooks.values())
        assert not self._removed & self._outlooks.keys()
