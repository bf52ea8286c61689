"""Epochs: which run of a request this is, and the engine-side id that carries it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """One run of a request; the larger wins.

    The API server counts attempts, the source of a migration counts hops. Hops grow along a lineage, with
    holes: a migration that was given up has used up its number, so that no engine sees an id twice.
    """

    attempt: int
    hop: int

    def __str__(self) -> str:
        return f"{self.attempt}.{self.hop}"


def engine_id(request_id: str, epoch: Epoch) -> str:
    """The id under which engines know this run."""
    return f"{request_id}@{epoch}"


def split_engine_id(of_engine: str) -> tuple[str, Epoch]:
    """Request id and epoch; raises ValueError for an id that `engine_id` did not make."""
    request_id, _, numbers = of_engine.rpartition("@")
    attempt, dot, hop = numbers.partition(".")
    if not (request_id and dot and attempt.isdecimal() and hop.isdecimal()):
        raise ValueError(f"{of_engine!r} is no engine-side id: it should end in @ATTEMPT.HOP")
    return request_id, Epoch(int(attempt), int(hop))
