"""Deliberately broken variants of the machines: the model must catch each."""

from __future__ import annotations

from dataclasses import replace

from llumnix.core.handover.actions import Action, Adopt, Outcome, ReleaseCopy, SendToPeer, ToOwner
from llumnix.core.handover.events import Quiesced, StartMigration
from llumnix.core.handover.host import Handovers
from llumnix.core.handover.messages import Abort
from llumnix.core.handover.owner import RequestOwner
from llumnix.core.handover.owner_events import Outputs, OwnerAction
from llumnix.core.handover.source import SourceHandover
from llumnix.core.handover.states import SourceState, TargetState
from llumnix.core.handover.target import TargetHandover

from .faults import FaultyWorld


class TargetFreesBeforeCancelConfirmed(TargetHandover):
    def _free_if_quiet(self) -> list[Action]:
        self._open.clear()
        return super()._free_if_quiet()


class TargetAdoptsBeforeBlocksAreInPlace(TargetHandover):
    def _adopt_if_complete(self) -> list[Action]:
        assert self._commit is not None
        self.state = TargetState.ADOPTING
        self.deadline = None
        self._engine_owes = True
        return [Adopt(self.prepare, self._commit)]


class TargetBreaksItsPromise(TargetHandover):
    """Says Abort and adopts all the same, should COMMIT come."""

    def _cancel(self, reason: str, *, tell_peer: bool = True) -> list[Action]:
        if tell_peer and self.state in (TargetState.RECEIVING, TargetState.COMMITTED):
            return [SendToPeer(self.peer, Abort(self.migration, reason))]
        return super()._cancel(reason, tell_peer=tell_peer)


class TargetReservesForEver(TargetHandover):
    """Has no time limit of its own."""

    @property
    def deadline(self) -> None:
        return None

    @deadline.setter
    def deadline(self, value: float | None) -> None: ...

    def check_integrity(self) -> None: ...


class SourceReleasesBeforeCancelConfirmed(SourceHandover):
    def _end(self, outcome: Outcome, reason: str) -> list[Action]:
        actions = super()._end(outcome, reason)
        if self.state is SourceState.CANCELLING:
            self.state = SourceState.ENDED
            self.stages.num_open = 0
            actions.append(ReleaseCopy(self.migration, self.stages.copy))
        return actions


class SourceResumesAfterCommit(SourceHandover):
    def _doubt(self, reason: str) -> list[Action]:
        return self._give_up(reason)


class SourceForgetsTokensSincePrepare(SourceHandover):
    def _commit(self, quiesced: Quiesced, now: float) -> list[Action]:
        return super()._commit(replace(quiesced, output_tokens=()), now)


class SourceIgnoresPreemption(SourceHandover):
    def _preempted(self) -> list[Action]:
        return []

    def _stepped(self, num_tokens: int, num_settled_tokens: int) -> list[Action]:
        self.stages.num_tokens = num_tokens
        return []


class SourceKeepsDoubtToItself(SourceHandover):
    def _doubt(self, reason: str) -> list[Action]:
        return [action for action in super()._doubt(reason) if not isinstance(action, ToOwner)]


class SourceLeavesRequestFrozen(SourceHandover):
    def _give_up(self, reason: str, *, tell_peer: bool = True, request_is_here: bool = True) -> list[Action]:
        return super()._give_up(reason, tell_peer=tell_peer, request_is_here=False)


class SourceTakesLossOfApiServerForAbort(SourceHandover):
    def _owner_lost(self, owner: int) -> list[Action]:
        return self._request_aborted()


class HostGivesHopsOutTwice(Handovers):
    def _start(self, event: StartMigration, now: float) -> list[Action]:
        self._hops_used.clear()
        return super()._start(event, now)


class OwnerDeliversInOrderOfArrival(RequestOwner):
    def _next_due(self) -> Outputs | None:
        return self._buffer[0] if self._buffer else None


class OwnerTakesStaleEpochs(RequestOwner):
    def _take_outputs(self, event: Outputs) -> list[OwnerAction]:
        self._buffer.append(event)
        return self._deliver_what_is_due()


class OwnerWaitsForEver(RequestOwner):
    """A gap has no time limit."""

    def _gap_by(self) -> float | None:
        return None


class OwnerTrustsTheDead(RequestOwner):
    def _instance_fenced(self, uid: int, reason: str, now: float) -> list[OwnerAction]:
        return []


class OwnerBelievesNoticesFromBeforeTheBreak(RequestOwner):
    def _instance_forgot(self, uid: int, reason: str, now: float) -> list[OwnerAction]:
        return self._instance_gone(uid, reason, now)


class OwnerResumesFromTheStart(RequestOwner):
    def _resume(self, reason: str, now: float) -> list[OwnerAction]:
        self.tokens.clear()
        self.num_delivered = 0
        return super()._resume(reason, now)


# With the faults under which each goes wrong.
_MACHINES: dict[type, frozenset[str]] = {
    TargetFreesBeforeCancelConfirmed: frozenset({"cancel", "preempt"}),
    TargetAdoptsBeforeBlocksAreInPlace: frozenset({"cordon"}),
    TargetBreaksItsPromise: frozenset({"cancel", "pressure"}),
    TargetReservesForEver: frozenset({"lose", "break"}),
    SourceReleasesBeforeCancelConfirmed: frozenset({"cancel", "abort"}),
    SourceResumesAfterCommit: frozenset({"break", "lose"}),
    SourceForgetsTokensSincePrepare: frozenset({"cordon"}),
    SourceIgnoresPreemption: frozenset({"preempt"}),
    SourceKeepsDoubtToItself: frozenset({"break", "lose"}),
    SourceLeavesRequestFrozen: frozenset({"preempt", "cancel"}),
    SourceTakesLossOfApiServerForAbort: frozenset({"cut_off"}),
    HostGivesHopsOutTwice: frozenset({"cancel"}),
    OwnerDeliversInOrderOfArrival: frozenset({"stall"}),
    OwnerTakesStaleEpochs: frozenset({"stall"}),
    OwnerWaitsForEver: frozenset({"lose", "break"}),
    OwnerTrustsTheDead: frozenset({"die", "cut_off"}),
    OwnerBelievesNoticesFromBeforeTheBreak: frozenset({"reconnect"}),
    OwnerResumesFromTheStart: frozenset({"die", "stall"}),
}


def _world_of(machine: type) -> type[FaultyWorld]:
    if issubclass(machine, RequestOwner):
        return type("MutantWorld", (FaultyWorld,), {"owner_type": machine})
    if issubclass(machine, SourceHandover):
        host = type("MutantHandovers", (Handovers,), {"source_type": machine})
    elif issubclass(machine, TargetHandover):
        host = type("MutantHandovers", (Handovers,), {"target_type": machine})
    else:
        host = machine
    return type("MutantWorld", (FaultyWorld,), {"handovers_type": host})


MUTANTS: dict[str, tuple[type[FaultyWorld], frozenset[str]]] = {
    machine.__name__: (_world_of(machine), faults) for machine, faults in _MACHINES.items()
}
"""World and faults by name of the broken machine."""
