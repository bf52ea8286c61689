"""Dispatch rules by name: how good an instance is for the next request; the highest score gets it.

`priority` is the request's. `weight` is the number of API servers: what the others sent since the report is
not known here, and is assumed to be like what this one sent. No score rises by a request sent, or all before
the next report would herd.
"""

from __future__ import annotations

from collections.abc import Callable

from llumnix.core.outlook import Outlook

Rule = Callable[[Outlook, int, int], float]


def score_freeness(outlook: Outlook, weight: int, priority: int) -> float:
    """Freeness of Algorithm 1; what was sent since the report counts with its whole demand, queued or not."""
    unseen_blocks = weight * outlook.unseen_blocks + outlook.unseen_headroom_blocks()
    return _per_request(
        outlook.report.total_blocks - outlook.reported_virtual_blocks - unseen_blocks, outlook, weight
    )


def score_backlog(outlook: Outlook, weight: int, priority: int) -> float:
    """Freeness with the whole queue counted, and what running requests still lack for their prompts.

    A class with headroom stays together while it leaves its headroom free: the more instances it is spread
    over, the more is kept free. A deficit is not shared among the batch: divided by it, as Algorithm 1 has
    it, the most crowded of those without headroom left would look freest.
    """
    free_blocks = float(outlook.room_blocks(weight))
    if outlook.is_home_of(priority):
        return free_blocks
    free_blocks -= outlook.headroom_in_use(but_of=priority)
    return free_blocks if free_blocks < 0 else _per_request(free_blocks, outlook, weight)


def score_load(outlook: Outlook, weight: int, priority: int) -> float:
    """Free memory per running request with all queued demand counted (INFaaS++)."""
    report = outlook.report
    free_blocks = report.total_blocks - report.used_blocks - report.queued_blocks
    return _per_request(free_blocks - weight * outlook.unseen_blocks, outlook, weight)


def score_least_requests(outlook: Outlook, weight: int, priority: int) -> float:
    """Fewest requests, a waiting one counting as four, as vLLM's own data-parallel balancer has it."""
    report = outlook.report
    return -(4.0 * (report.waiting + weight * len(outlook.unseen)) + report.running)


def score_round_robin(outlook: Outlook, weight: int, priority: int) -> float:
    """Fewest requests dispatched so far by this server."""
    return -float(outlook.num_dispatched)


def _per_request(free_blocks: float, outlook: Outlook, weight: int) -> float:
    """Share `free_blocks` among the batch, with what was sent since in it as far as it will run.

    With a deficit nothing more is admitted; were it shared by a larger batch, each request sent would make
    the instance look freer.
    """
    batch = outlook.report.running
    if free_blocks >= 0:
        batch += min(weight * len(outlook.unseen), outlook.num_slots)
    return free_blocks / max(batch, 1)


RULES: dict[str, Rule] = {
    "freeness": score_freeness,
    "backlog": score_backlog,
    "load": score_load,
    "least_requests": score_least_requests,
    "round_robin": score_round_robin,
}
