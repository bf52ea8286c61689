"""Rescheduling of a set of requests at rest: it settles, and never moves a request for nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from llumnix.core.events import (
    AddInstances,
    Drain,
    InstancePlaced,
    InstanceReady,
    InstanceState,
    MoveRequests,
    Reported,
    Tick,
)
from llumnix.core.load import ClassLoad, Headroom, InstanceReport
from llumnix.core.scheduler import Scheduler
from llumnix.core.settings import SchedulerSettings
from llumnix.core.victims import Candidate, Sent, next_victim

from .reports import report

HIGH, NORMAL = -10, 0
TOTAL_BLOCKS = 100

fewer = settings(max_examples=60)


@dataclass
class Cluster:
    """Instances whose requests neither grow nor end; a move is done at once."""

    settings: SchedulerSettings
    requests: dict[int, list[Candidate]]
    now: float = 0.0
    seq: int = 0
    moves: list[tuple[Candidate, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.settings)
        self.scheduler.handle(AddInstances(len(self.requests)), 0.0)
        for uid in self.requests:
            self.scheduler.handle(InstancePlaced(uid, "n0", uid), 0.0)
            self.scheduler.handle(InstanceReady(uid), 0.0)

    def load(self, uid: int) -> InstanceReport:
        running = [r for r in self.requests[uid] if r.is_running]
        waiting = [r for r in self.requests[uid] if not r.is_running]
        classes = {
            priority: ClassLoad(
                running=sum(r.priority == priority for r in running),
                waiting=sum(r.priority == priority for r in waiting),
                used_blocks=sum(r.num_blocks for r in running if r.priority == priority),
            )
            for priority in (HIGH, NORMAL)
        }
        return report(
            uid=uid,
            seq=self.seq,
            total_blocks=TOTAL_BLOCKS,
            used_blocks=sum(r.num_blocks for r in running),
            max_running=256,
            running=len(running),
            waiting=len(waiting),
            queued_blocks=sum(r.num_blocks for r in waiting),
            head_blocks=waiting[0].num_blocks if waiting else 0,
            classes=classes,
        )

    def round(self) -> list[MoveRequests]:
        """Everybody reports, the scheduler decides, and the llumlets do as they are told."""
        self.seq += 1
        self.now += 0.3
        for uid in self.requests:
            self.scheduler.handle(Reported(self.load(uid)), self.now)
        orders = [a for a in self.scheduler.handle(Tick(), self.now) if isinstance(a, MoveRequests)]
        for order in orders:
            self.carry_out(order)
        return orders

    def carry_out(self, order: MoveRequests) -> None:
        sent, refused = Sent(), []
        while True:
            candidates = [r for r in self.requests[order.source] if r not in refused]
            victim = next_victim(candidates, self.load(order.source), order.goal, sent)
            if victim is None:
                return
            used = sum(r.num_blocks for r in self.requests[order.target] if r.is_running)
            if used + victim.num_blocks > TOTAL_BLOCKS:
                refused.append(victim)
                continue
            self.requests[order.source].remove(victim)
            self.requests[order.target].append(replace(victim, is_running=True))
            self.moves.append((victim, order.source, order.target))
            sent = sent.plus(victim)


def settings_of(policy: str) -> SchedulerSettings:
    return SchedulerSettings(policy=policy, headroom={HIGH: Headroom(target_load_tokens=480)})


@st.composite
def placements(draw: st.DrawFn) -> dict[int, list[Candidate]]:
    """Some instances with requests that fit; where few blocks are left, one may wait."""
    placed: dict[int, list[Candidate]] = {}
    for uid in range(1, draw(st.integers(2, 6)) + 1):
        left, requests = TOTAL_BLOCKS, []
        for blocks in draw(st.lists(st.integers(1, 40), max_size=8)):
            priority = draw(st.sampled_from((HIGH, NORMAL, NORMAL, NORMAL)))
            is_running = blocks <= left
            left -= blocks if is_running else 0
            number = len(requests)
            requests.append(Candidate(f"r{uid}.{number}", priority, blocks * 16, blocks, is_running))
        placed[uid] = requests
    return placed


@fewer
@given(placements())
def test_requests_at_rest_settle_under_llumnix_plus(requests: dict[int, list[Candidate]]) -> None:
    everybody = sorted(r.request_id for on_one in requests.values() for r in on_one)
    cluster = Cluster(settings_of("llumnix+"), requests)
    for _ in range(60):
        num_moves = len(cluster.moves)
        cluster.round()
        if len(cluster.moves) == num_moves:
            break
    else:
        raise AssertionError(f"still moving: {cluster.moves[-6:]}")
    assert sorted(r.request_id for on_one in requests.values() for r in on_one) == everybody
    assert len(cluster.moves) <= 2 * len(everybody), "a request comes and goes"


@fewer
@given(placements(), st.sampled_from(("llumnix", "llumnix+")))
def test_a_more_important_request_never_leaves_before_a_less_important_one(
    requests: dict[int, list[Candidate]], policy: str
) -> None:
    cluster = Cluster(settings_of(policy), requests)
    uids = {uid: {r.request_id for r in on_one if r.is_running} for uid, on_one in requests.items()}
    cluster.scheduler.handle(Drain("i0", 60), 0.0)
    cluster.round()
    stayed = {uid: [r for r in on_one if r.request_id in uids[uid]] for uid, on_one in requests.items()}
    for victim, source, target in cluster.moves:
        if victim.priority == HIGH and victim.is_running and cluster.load(source).waiting == 0:
            room = TOTAL_BLOCKS - cluster.load(target).used_blocks
            assert not [r for r in stayed[source] if r.priority == NORMAL and r.num_blocks <= room]


@fewer
@given(placements(), st.sampled_from(("llumnix", "llumnix+", "load")))
def test_a_drain_empties_an_instance_as_far_as_others_have_room(
    requests: dict[int, list[Candidate]], policy: str
) -> None:
    cluster = Cluster(settings_of(policy), requests)
    cluster.scheduler.handle(Drain("i0", 1000), 0.0)
    for _ in range(40):
        cluster.round()
    others = [uid for uid in requests if uid != 1]
    smallest = min((r.num_blocks for r in requests[1]), default=None)
    roomiest = max(TOTAL_BLOCKS - cluster.load(uid).used_blocks for uid in others)
    assert smallest is None or smallest > roomiest or not requests[1]


@fewer
@given(placements(), st.sampled_from(("llumnix", "llumnix+")))
def test_orders_name_running_targets_and_their_reasons(
    requests: dict[int, list[Candidate]], policy: str
) -> None:
    cluster = Cluster(settings_of(policy), requests)
    for _ in range(5):
        for order in cluster.round():
            states = {v.uid: v.state for v in cluster.scheduler.instances()}
            assert states[order.target] is InstanceState.RUNNING and order.source != order.target
            assert any(character.isdigit() for character in order.reason)
