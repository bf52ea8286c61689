"""What the API server tells RequestOwner, and what that wants done."""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.core.handover.epochs import Epoch, engine_id
from llumnix.core.handover.messages import Adopted, Moved

# ---- events ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outputs:
    """One step's output of the request; `payload` comes back in Deliver."""

    uid: int
    request_id: str
    epoch: Epoch
    offset: int
    """Output tokens of the request before these, over all attempts and hops."""
    tokens: tuple[int, ...]
    finish_reason: str | None
    payload: object = None


@dataclass(frozen=True, slots=True)
class MovedFrom:
    uid: int
    notice: Moved


@dataclass(frozen=True, slots=True)
class AdoptedAt:
    uid: int
    notice: Adopted


@dataclass(frozen=True, slots=True)
class AttemptPlaced:
    """Answer to StartAttempt: it is sent to this instance. Told in the same turn as the sending."""

    uid: int
    request_id: str
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class AttemptHeld:
    """Answer to StartAttempt: it waits, for room (an instance is left) or for an instance (none is).

    Told again whenever that changes; AttemptPlaced may follow at any time until Fail.
    """

    epoch: Epoch
    reason: str
    is_any_left: bool


@dataclass(frozen=True, slots=True)
class Fenced:
    """The instance is dead for sure, or cut off: nothing that it sends from now on is taken in."""

    uid: int
    reason: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The instance lives but has dropped all it had of this API server: the connection was broken."""

    uid: int
    reason: str


@dataclass(frozen=True, slots=True)
class ClientAborted:
    """The client, a stop string or an operator ended the request."""


@dataclass(frozen=True, slots=True)
class OwnerTick:
    """Time passed; sent when `deadline` has come, more often does no harm."""


OwnerEvent = (
    Outputs
    | MovedFrom
    | AdoptedAt
    | AttemptPlaced
    | AttemptHeld
    | Fenced
    | Forgotten
    | ClientAborted
    | OwnerTick
)

# ---- actions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Dispatch the request with these output tokens given; answered by AttemptPlaced or AttemptHeld.

    What was queued for an earlier attempt of it is void.
    """

    epoch: Epoch
    output_tokens: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand `output` to the client, without its first `num_doubled` tokens."""

    output: Outputs
    num_doubled: int


@dataclass(frozen=True, slots=True)
class AbortAt:
    """Send an abort of `engine_id` to this instance, if there is a way to it."""

    uid: int
    request_id: str
    epoch: Epoch

    @property
    def engine_id(self) -> str:
        return engine_id(self.request_id, self.epoch)


@dataclass(frozen=True, slots=True)
class Fail:
    """The client gets an error (503, or an error event once its stream has begun)."""

    reason: str


OwnerAction = StartAttempt | Deliver | AbortAt | Fail
