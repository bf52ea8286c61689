"""Which instance takes the requests of one that is drained."""

from __future__ import annotations

from collections.abc import Iterable

from llumnix.core.events import Action, InstanceState, MoveRequests
from llumnix.core.load import freeness, headroom_in_blocks
from llumnix.core.member import Member
from llumnix.core.settings import SchedulerSettings

ORDER_S = 0.5
"""An order to move holds this long; it is renewed, or goes to a freer instance, every tick."""


def empty_draining(members: Iterable[Member], settings: SchedulerSettings) -> list[Action]:
    """The paper's fake request of a terminating instance: the freest one takes what it has."""
    members = list(members)
    targets = sorted(
        ((_freeness(m, settings), m.run.uid, m) for m in members if m.state is InstanceState.RUNNING),
        key=lambda entry: (-entry[0], entry[1]),
    )
    if not targets:
        return []
    actions: list[Action] = []
    for turn, source in enumerate(m for m in members if m.state is InstanceState.DRAINING):
        report = source.run.report
        if report is None or not (report.running or report.waiting):
            continue
        # Several that drain at once do not all crowd one target.
        free, uid, target = targets[turn % len(targets)]
        reason = f"{source.instance} is drained; {target.instance} is free ({free:.1f} blocks per request)"
        actions.append(MoveRequests(source.run.uid, uid, reason, ORDER_S))
    return actions


def _freeness(member: Member, settings: SchedulerSettings) -> float:
    report = member.run.report
    if report is None:
        return 0.0
    return freeness(report, headroom_in_blocks(settings.headroom_tokens, report.block_size))
