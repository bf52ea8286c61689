"""Policies by name: a dispatch rule, whether requests are held, and who gives requests to whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llumnix.core.choice import Admission
from llumnix.core.dispatch import Dispatcher
from llumnix.core.events import HeldRequests
from llumnix.core.pairing import Pair, Standing, pair_by_need, pair_by_threshold
from llumnix.core.settings import SchedulerSettings

Reschedule = Callable[[Sequence[Standing], Sequence[HeldRequests], SchedulerSettings], list[Pair]]


@dataclass(frozen=True, slots=True)
class Policy:
    """A named combination. Drains and scaling work alike in all of them."""

    dispatch_rule: str
    """A name of llumnix.core.dispatch_rules.RULES."""
    reschedule: Reschedule | None = None
    """None: requests stay where they were placed."""
    holds: bool = False
    """API servers keep a request until an instance has room for it (late binding)."""
    follows_prefixes: bool = False
    """An instance that was sent the same beginning of a prompt before is preferred."""


POLICIES: dict[str, Policy] = {
    "llumnix+": Policy("backlog", pair_by_need, holds=True, follows_prefixes=True),
    "llumnix": Policy("freeness", pair_by_threshold),
    "load": Policy("load"),
    "least_requests": Policy("least_requests"),
    "round_robin": Policy("round_robin"),
}


def make_dispatcher(settings: SchedulerSettings, *, api_servers: int, server_index: int) -> Dispatcher:
    """The dispatcher of one API server under the policy of `settings`."""
    policy = POLICIES[settings.policy]
    plus = settings.llumnix_plus
    return Dispatcher(
        policy.dispatch_rule,
        headroom=settings.headroom,
        api_servers=api_servers,
        server_index=server_index,
        admission=Admission(plus.reserve_blocks) if policy.holds else None,
        prefix_reach=plus.prefix_reach if policy.follows_prefixes else 1.0,
    )
