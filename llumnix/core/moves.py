"""Orders to move requests: one round of rescheduling after the other, and what is in force meanwhile."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llumnix.core.events import Action, HeldRequests, MoveRequests
from llumnix.core.member import Member
from llumnix.core.pairing import Pair, Standing, empty_draining, standings
from llumnix.core.policies import POLICIES
from llumnix.core.settings import SchedulerSettings
from llumnix.core.victims import MoveGoal

ORDER_S = 0.5
"""An order to move holds this long; it is renewed while it is wanted, or goes to another target."""

NOTHING = MoveGoal(until_freeness=-math.inf)
"""A goal that every source has reached: the order to stop."""


@dataclass(frozen=True, slots=True)
class Order:
    target: int
    renew_at: float


class Mover:
    """Decides who moves requests where. Invariant: at most one order by source, each to a known target."""

    def __init__(self) -> None:
        self._orders: dict[int, Order] = {}
        self._next_round_at = 0.0

    def round_if_due(
        self,
        members: Iterable[Member],
        held: Sequence[HeldRequests],
        settings: SchedulerSettings,
        now: float,
    ) -> list[Action]:
        """Pair sources with targets, at most once in `settings.interval_s`."""
        if now < self._next_round_at:
            return []
        self._next_round_at = now + settings.interval_s
        everybody = standings(members, settings)
        pairs = wanted_pairs(everybody, held, settings)
        self._orders = {
            uid: order for uid, order in self._orders.items() if now < order.renew_at + ORDER_S / 2
        }
        withdrawn = self._withdraw_others(pairs, everybody)
        return [*withdrawn, *(action for pair in pairs for action in self._order(pair, now))]

    def _withdraw_others(self, pairs: Sequence[Pair], everybody: Sequence[Standing]) -> list[Action]:
        """A source that is paired no more stops at once: it, or its target, would go too far."""
        known = {standing.uid: standing for standing in everybody}
        actions: list[Action] = []
        for uid in sorted(self._orders.keys() - {pair.source.uid for pair in pairs}):
            source, target = known.get(uid), known.get(self._orders.pop(uid).target)
            if source is not None and target is not None:
                reason = (
                    f"{source.instance} gives no more: it has freeness {source.freeness:.1f}, "
                    f"{target.instance} has {target.freeness:.1f}"
                )
                actions.append(MoveRequests(source.uid, target.uid, reason, ORDER_S, NOTHING))
        return actions

    def _order(self, pair: Pair, now: float) -> list[Action]:
        known = self._orders.get(pair.source.uid)
        if known is not None and known.target == pair.target.uid and now < known.renew_at:
            return []
        self._orders[pair.source.uid] = Order(pair.target.uid, now + ORDER_S / 2)
        return [MoveRequests(pair.source.uid, pair.target.uid, pair.reason, ORDER_S, pair.goal)]


def wanted_pairs(
    everybody: Sequence[Standing], held: Sequence[HeldRequests], settings: SchedulerSettings
) -> list[Pair]:
    """The pairs of one round: drains first, then those of the policy among everybody else."""
    pairs = empty_draining(everybody)
    reschedule = POLICIES[settings.policy].reschedule
    if reschedule is not None and settings.rescheduling:
        paired = {side.uid for pair in pairs for side in (pair.source, pair.target)}
        pairs += reschedule([s for s in everybody if s.uid not in paired], held, settings)
    return pairs
