"""What may go wrong in the world, and what operators and clients may ask for, at any time."""

from __future__ import annotations

from collections import deque

from llumnix.core.handover.events import OwnerLost, PeerLost, PeerMessage, Tick
from llumnix.core.handover.owner_events import ClientAborted, Fenced, Forgotten, OwnerTick

from .pool_model import Spec
from .world import World


class FaultyWorld(World):
    """The world with everything that can be done to it from outside."""

    def new_request(self, num_prompt: int, num_outputs: int) -> None:
        spec = Spec(len(self.specs), num_prompt, num_outputs)
        self.specs[spec.name] = spec
        self.clients[spec.name] = []
        owner = self.owners[spec.name] = self.owner_type(spec.name, self.settings, self.now)
        self.perform_all(spec.name, owner.start())

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for instance in self.living():
            instance.tell(Tick())
        for name in list(self.owners):
            self.tell_owner(name, OwnerTick())

    def kill(self, uid: int, *, outputs_survive: bool) -> None:
        self.instances[uid].alive = False
        self.from_owner[uid].clear()
        if not outputs_survive:
            self.to_owner[uid].clear()
        if not self.instances[uid].cut_off:
            self.deaths.append(Fenced(uid, "killed by signal 9"))
        for transfer in self.transfers.values():
            transfer.died(uid)
        for other in self.living():
            self.channels.get((other.uid, uid), deque()).clear()
            if not outputs_survive:
                self.channels.get((uid, other.uid), deque()).clear()
            self._lose_peer(uid, other.uid)

    def _lose_peer(self, lost: int, told: int) -> None:
        event = PeerLost(lost, "connection reset")
        if self.lives(told):
            self.channels.setdefault((lost, told), deque()).append(event)

    def break_link(self, a: int, b: int, *, told: tuple[bool, bool]) -> None:
        """All that is under way between two instances is lost; each side is told, or not."""
        for key in ((a, b), (b, a)):
            self.channels.get(key, deque()).clear()
        for (lost, side), is_told in zip(((b, a), (a, b)), told, strict=True):
            if is_told:
                self._lose_peer(lost, side)

    def lose_message(self) -> None:
        queues = [q for q in self.channels.values() if q and isinstance(q[0], PeerMessage)]
        if queues:
            self.rng.choice(queues).popleft()

    def stall(self, uid: int, *, stalled: bool) -> None:
        """What an instance sends to the API server is on its way for long, or not any more."""
        self.pace[f"output of {uid}"] = 0.005 if stalled else 1.0

    def mute(self, a: int, b: int) -> None:
        self.muted.add((a, b))

    def cut_off(self, uid: int, *, notices: bool) -> None:
        """The API server loses an instance that goes on; with `notices` the instance notices too."""
        instance = self.instances[uid]
        if not instance.alive or instance.cut_off:
            return
        instance.cut_off = True
        self.from_owner[uid].clear()
        self.deaths.append(Fenced(uid, "cut off: its epochs are revoked"))
        if notices:
            instance.tell(OwnerLost(0))
            for entry in list(instance.engine.requests.values()):
                instance.engine.abort(entry.id)

    def abort_client(self, name: str) -> None:
        if name not in self.ends:
            self._request_over(name, "aborted")
            self.tell_owner(name, ClientAborted())

    def reconnect(self, uid: int, *, outputs_survive: bool) -> None:
        """The connection to the API server breaks and is made again: the instance drops what it had of it.

        Notices that it sent before may be read after the API server has heard of the break.
        """
        instance = self.instances[uid]
        if not instance.alive or instance.cut_off:
            return
        self.from_owner[uid].clear()
        if not outputs_survive:
            self.to_owner[uid].clear()
        self.deaths.append(Forgotten(uid, "the connection to it broke"))
        instance.tell(OwnerLost(0))
        for entry in list(instance.engine.requests.values()):
            instance.engine.abort(entry.id)

    # ---- the end ----

    def settle(self, *, mute: bool, with_instance: bool) -> None:
        """Faults end (but for silence between instances): everything must come to its end, by time alone."""
        self.churn = self.haste = 0.0
        self.pace.clear()
        self.muted.clear()
        self.all_muted = mute
        for instance in self.living():
            if instance.cut_off or not with_instance:
                self.kill(instance.uid, outputs_survive=True)
        if with_instance and not self.usable():
            self.spawn()
        for _ in range(600):
            self.run(50)
            if self.moves():
                # Two requests may preempt each other for as long as a third, frozen, holds its blocks.
                self.advance(0.1)
                continue
            deadlines = [i.handovers.next_deadline() for i in self.living()]
            deadlines += [owner.deadline for owner in self.owners.values()]
            due = min((d for d in deadlines if d is not None), default=None)
            if due is None:
                break
            self.advance(max(due - self.now, 0))
        self._check_the_end(with_instance)

    def _check_the_end(self, with_instance: bool) -> None:
        assert self.ends.keys() == self.specs.keys(), f"not over: {self.specs.keys() - self.ends.keys()}"
        for name, end in self.ends.items():
            if end == "finished":
                assert len(self.clients[name]) == self.specs[name].num_outputs, "tokens were lost"
        for instance in self.living():
            assert not instance.handovers.states() and not instance.engine.requests, "something is left"
            assert len(instance.engine.pool.freed) == len(instance.engine.pool.refs), "a block is leaked"
        assert with_instance or not self.living()
