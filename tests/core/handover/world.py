"""A whole cluster in one process: instances, network, API server, clients; nothing happens by itself.

`moves()` are the things that may happen next in a world without faults, in any order; the methods named for
faults happen at any time. Control channels and output sockets are FIFO each, unordered among each other.
"""

from __future__ import annotations

from collections import Counter, deque
from functools import partial
from random import Random

from llumnix.core.events import CommandRefused
from llumnix.core.handover.events import (
    CopyEnd,
    Event,
    StartMigration,
)
from llumnix.core.handover.host import Handovers
from llumnix.core.handover.owner import RequestOwner
from llumnix.core.handover.owner_events import (
    AbortAt,
    AdoptedAt,
    AttemptHeld,
    AttemptPlaced,
    Deliver,
    Fail,
    Fenced,
    Forgotten,
    MovedFrom,
    Outputs,
    OwnerAction,
    OwnerEvent,
    StartAttempt,
)
from llumnix.core.handover.settings import HandoverSettings

from .instance_model import Instance
from .pool_model import Entry, Spec
from .transfers import End, Move, Side, Transfer

SETTINGS = HandoverSettings(
    max_inflight_blocks=4,
    growth_blocks=1,
    timeout_s=5,
    handover_timeout_s=2,
    resume_timeout_s=30,
    max_attempts=10_000,
)


class World:
    handovers_type = Handovers
    owner_type = RequestOwner

    def __init__(self, seed: int, num_instances: int = 3, settings: HandoverSettings = SETTINGS) -> None:
        self.rng = Random(seed)
        self.settings = settings
        self.now = 0.0
        self.specs: dict[str, Spec] = {}
        self.instances: dict[int, Instance] = {}
        self.channels: dict[tuple[int, int], deque[Event]] = {}
        self.muted: set[tuple[int, int]] = set()
        self.all_muted = False
        self.transfers: dict[tuple[str, int], Transfer] = {}
        self.to_owner: dict[int, deque[OwnerEvent]] = {}
        self.from_owner: dict[int, deque[AbortAt | tuple[StartAttempt, Spec]]] = {}
        self.owners: dict[str, RequestOwner] = {}
        self.clients: dict[str, list[int]] = {}
        self.ends: dict[str, str] = {}
        self.unplaced: dict[str, StartAttempt] = {}
        self.deaths: list[Fenced | Forgotten] = []
        self.fenced: set[int] = set()
        self.outcomes: Counter[str] = Counter()
        self.reasons: set[str] = set()
        self.num_attempts = 0
        self.pace: dict[str, float] = {}
        self.haste = 0.15
        """How likely `run` stops when COMMIT is under way, so that something else happens then."""
        self.churn = 0.0
        """How likely a migration is started before a move."""
        for _ in range(num_instances):
            self.spawn()

    # ---- network ----

    def send(self, source: int, target: int, event: Event) -> None:
        if (source, target) not in self.muted and not self.all_muted and self.lives(target):
            self.channels.setdefault((source, target), deque()).append(event)

    def lives(self, uid: int) -> bool:
        return uid in self.instances and self.instances[uid].alive

    def usable(self) -> list[Instance]:
        """What the API server may send requests to."""
        return [i for i in self.instances.values() if i.alive and not i.cut_off and i.uid not in self.fenced]

    def living(self) -> list[Instance]:
        return [i for i in self.instances.values() if i.alive]

    def transfer(self, migration: str, copy: int, source: int, target: int) -> Transfer:
        key = (migration, copy)
        if key not in self.transfers:
            sides = Side(source), Side(target)
            self.transfers[key] = Transfer(migration, copy, *sides, self._tell_end, self._read, self._write)
            for uid in (source, target):
                if not self.lives(uid):
                    self.transfers[key].died(uid)
        return self.transfers[key]

    def _tell_end(self, uid: int, event: CopyEnd) -> None:
        self.instances[uid].tell(event)

    def _read(self, uid: int, block: int) -> list[int]:
        return list(self.instances[uid].engine.pool.contents[block])

    def _write(self, uid: int, block: int, content: list[int]) -> None:
        self.instances[uid].engine.pool.contents[block] = content

    def touched(self, uid: int) -> set[int]:
        return {block for transfer in self.transfers.values() for block in transfer.touched(uid)}

    # ---- API server ----

    def tell_owner(self, name: str, event: OwnerEvent) -> None:
        self.perform_all(name, self.owners[name].handle(event, self.now))

    def perform_all(self, name: str, actions: list[OwnerAction]) -> None:
        for action in actions:
            match action:
                case Deliver(output, num_doubled):
                    self._deliver_to_client(name, output.tokens[num_doubled:])
                    if output.finish_reason is not None:
                        self._request_over(name, "finished")
                case AbortAt(uid):
                    if self.lives(uid) and not self.instances[uid].cut_off:
                        self.from_owner[uid].append(action)
                case StartAttempt():
                    assert list(action.output_tokens) == self.clients[name]
                    self.num_attempts += action.epoch.attempt > 0
                    self.unplaced[name] = action
                    self.try_to_place(name)
                case Fail(reason):
                    assert not self.usable(), f"failed although an instance is left: {reason}"
                    self._request_over(name, "failed")

    def _deliver_to_client(self, name: str, tokens: tuple[int, ...]) -> None:
        got, attempt = self.clients[name], self.owners[name].attempt
        for token in tokens:
            due = self.specs[name].output(len(got), attempt)
            assert token == due, f"{name} got {token} after {got}, not {due}"
            got.append(token)

    def _request_over(self, name: str, end: str) -> None:
        assert name not in self.ends, "ended twice"
        self.ends[name] = end
        self.unplaced.pop(name, None)

    def try_to_place(self, name: str) -> None:
        attempt = self.unplaced[name]
        usable = self.usable()
        if not usable:
            held = AttemptHeld(attempt.epoch, "no instance is left", is_any_left=False)
            self.tell_owner(name, held)
            return
        instance = self.rng.choice(usable)
        del self.unplaced[name]
        self.from_owner[instance.uid].append((attempt, self.specs[name]))
        self.tell_owner(name, AttemptPlaced(instance.uid, name, attempt.epoch))

    def _take(self, uid: int) -> None:
        event = self.to_owner[uid].popleft()
        match event:
            case Outputs(_, name):
                self._take_outputs(name, event)
            case AdoptedAt(_, notice) | MovedFrom(_, notice):
                self.tell_owner(notice.request_id, event)

    def _take_outputs(self, name: str, event: Outputs) -> None:
        """By the short way or the long one, which must be the same."""
        owner = self.owners[name]
        is_short = event.finish_reason is None and self.rng.random() < 0.5
        if is_short and owner.accept(event.uid, event.epoch, event.offset, event.tokens):
            self._deliver_to_client(name, event.tokens)
        else:
            self.tell_owner(name, event)

    def _give(self, uid: int) -> None:
        order = self.from_owner[uid].popleft()
        engine = self.instances[uid].engine
        if isinstance(order, AbortAt):
            engine.abort(order.engine_id)
        else:
            attempt, spec = order
            engine.add(spec, attempt.epoch, attempt.output_tokens)

    def _fence(self, loss: Fenced | Forgotten) -> None:
        self.deaths.remove(loss)
        if isinstance(loss, Fenced):
            self.fenced.add(loss.uid)
        for name in list(self.owners):
            self.tell_owner(name, loss)

    # ---- what may happen ----

    def moves(self) -> list[Move]:
        moves: list[Move] = []
        for instance in self.living():
            moves += instance.moves()
            if self.from_owner[instance.uid]:
                moves.append(("order", partial(self._give, instance.uid)))
        for key, queue in self.channels.items():
            if queue:
                moves.append((f"message {key}", partial(self._deliver, key)))
        for uid, outputs in self.to_owner.items():
            if outputs:
                moves.append((f"output of {uid}", partial(self._take, uid)))
        for transfer in self.transfers.values():
            moves += transfer.moves()
        moves += [("fence", partial(self._fence, death)) for death in self.deaths]
        return moves

    def _deliver(self, key: tuple[int, int]) -> None:
        event = self.channels[key].popleft()
        if self.lives(key[1]):
            self.instances[key[1]].tell(event)

    def run(self, num_moves: int) -> None:
        """That many things happen, whichever; some kinds, links and output sockets are slow."""
        for _ in range(num_moves):
            if self.rng.random() < self.churn:
                self.migrate_something()
            moves = self.moves()
            if not moves:
                return
            kinds = sorted({kind for kind, _ in moves})
            weights = [self.pace.setdefault(kind, 0.05 if self.rng.random() < 0.1 else 1.0) for kind in kinds]
            kind = self.rng.choices(kinds, weights)[0]
            self.rng.choice([move for of, move in moves if of == kind])()
            self.drop_what_is_over()
            self.check()
            if self.is_at_stake() and self.rng.random() < self.haste:
                return

    def is_at_stake(self) -> bool:
        """COMMIT is under way somewhere: the moment at which faults have most to spoil."""
        return any("committing" in instance.handovers.states().values() for instance in self.living())

    def drop_what_is_over(self) -> None:
        for key in [
            k for k, t in self.transfers.items() if {t.source.end, t.target.end} <= {End.DONE, End.BROKEN}
        ]:
            del self.transfers[key]

    # ---- commands ----

    def spawn(self) -> None:
        uid = len(self.instances) + 1
        self.to_owner[uid], self.from_owner[uid] = deque(), deque()
        self.instances[uid] = Instance(self, uid)
        for name in list(self.unplaced):
            self.try_to_place(name)

    def migrate(self, entry: Entry, source: Instance, target: int) -> None:
        start = StartMigration(source.handovers.new_id(), target, source.engine.snapshot(entry))
        try:
            source.tell(start)
        except CommandRefused as refusal:
            assert str(refusal)

    def migrate_something(self) -> None:
        entries = [(i, e) for i, e in self.entries() if i.handovers.migration_of(e.id) is None]
        if entries:
            source, entry = self.rng.choice(entries)
            self.migrate(entry, source, self.rng.choice(self.living()).uid)

    def entries(self) -> list[tuple[Instance, Entry]]:
        return [(i, entry) for i in self.living() for entry in i.engine.requests.values()]

    # ---- what must hold ----

    def check(self) -> None:
        for instance in self.living():
            instance.check_integrity()
        able: Counter[str] = Counter()
        for instance, entry in self.entries():
            owner = self.owners[entry.spec.name]
            is_current = not owner.is_over and entry.epoch.attempt == owner.attempt
            if is_current and instance.uid not in self.fenced and entry.frozen_from is None:
                able[entry.spec.name] += 1
        assert all(count <= 1 for count in able.values()), f"two live epochs deliver: {able}"
        for name, owner in self.owners.items():
            owner.check_integrity()
            assert owner.is_over == (name in self.ends)
