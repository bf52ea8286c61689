"""A migration played by hand between two engines, as two llumlets and a transport would."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from llumnix.engine.migration.adopt import Reservation
from llumnix.engine.migration.state import FinalState, PrepareInfo, decode, encode
from llumnix.errors import RefusedError
from tests.engine.migration.lab import BLOCK_SIZE, Lab, Result


def copy_blocks(source: Lab, target: Lab, pairs: list[tuple[int, int]], reservation: Reservation) -> None:
    """Copy blocks by their place in the sequence, as a transport would."""
    if source.views is None or target.views is None:
        read = source.engine.model_executor.collective_rpc("llumnix_test_read", args=([b for _, b in pairs],))
        places = [reservation.block_ids[place] for place, _ in pairs]
        target.engine.model_executor.collective_rpc("llumnix_test_write", args=(places, read))
        return
    for place, block in pairs:
        for mine, theirs in zip(source.views, target.views, strict=True):
            theirs[reservation.block_ids[place]].copy_(mine[block])
    if source.views[0].is_cuda:
        torch.cuda.synchronize()


@dataclass
class Move:
    """One migration, step by step; run() plays all of it."""

    source: Lab
    target: Lab
    request_id: str
    new_id: str
    copies_kv: bool = True
    tamper: Callable[[FinalState], FinalState] = lambda final: final
    reservation: Reservation | None = None
    num_copied: int = 0
    num_sent_blocks: int = 0

    def prepare(self, num_ahead_tokens: int = 0) -> None:
        self.info = decode(encode(self.source.port.source.identity(self.request_id)), PrepareInfo)
        target = self.target.port.target
        self.reservation = target.reserve(self.info, self.new_id, num_ahead_tokens)
        self.num_copied = self.reservation.num_hit_blocks

    def wait_until_ready(self) -> None:
        assert self.reservation is not None
        while not self.target.port.target.is_ready(self.reservation):
            time.sleep(0.001)  # its grammar is compiled in another thread

    def copy_stage(self) -> None:
        pairs = self.source.port.source.copyable_blocks(self.request_id, self.num_copied)
        self._copy(pairs)

    def freeze(self) -> bool:
        """Freeze and wait until quiet; False if the request ended or was preempted meanwhile."""
        side = self.source.port.source
        preemptions = self.info.num_preemptions
        if side.progress(self.request_id) is None:
            return False
        side.freeze(self.request_id)
        while (progress := side.progress(self.request_id)) is not None:
            if progress.num_preemptions != preemptions:
                return False
            if progress.quiet:
                return True
            self.source.step()
        return False

    def commit(self) -> None:
        assert self.reservation is not None
        source, target = self.source.port.source, self.target.port.target
        final = source.final_state(self.request_id, len(self.info.output_token_ids))
        if not target.grow(self.reservation, final.num_computed_tokens):
            raise RefusedError("no room")
        self._copy(source.last_blocks(self.request_id, self.num_copied))
        target.adopt(self.reservation, decode(encode(self.tamper(final)), FinalState))
        source.release(self.request_id)
        self.target.results[self.new_id] = self.source.results[self.request_id]

    def abort(self) -> None:
        if self.reservation is not None:
            self.target.port.target.free(self.reservation)
        self.source.port.source.unfreeze(self.request_id)

    def run(self, num_stages: int = 1, steps_between: int = 1) -> bool:
        """Whether the request runs at the target now; else it runs on, or has ended, at the source."""
        try:
            self.prepare()
            self.wait_until_ready()
            for _ in range(num_stages):
                if self.source.port.source.progress(self.request_id) is None:
                    self.abort()
                    return False
                self.copy_stage()
                for _ in range(steps_between):
                    self.source.step()
            if not self.freeze():
                self.abort()
                return False
            self.commit()
        except RefusedError:
            self.abort()
            return False
        return True

    def _copy(self, pairs: list[tuple[int, int]]) -> None:
        assert self.reservation is not None
        if pairs and pairs[-1][0] >= len(self.reservation.block_ids):
            num_tokens = (pairs[-1][0] + 1) * BLOCK_SIZE
            if not self.target.port.target.grow(self.reservation, num_tokens):
                raise RefusedError("no room")
        if self.copies_kv and pairs:
            copy_blocks(self.source, self.target, pairs, self.reservation)
        self.num_copied += len(pairs)
        self.num_sent_blocks += len(pairs)


def there_and_back(source: Lab, target: Lab, tokens: list[int], params: Any) -> tuple[Result, int]:
    """A request that moves every few steps until it ends, and how often it did."""
    result = source.submit("a-0", tokens, params)
    here, there, hop = source, target, 0
    while result.finish is None:
        here.step()
        here.step()
        if (
            result.finish is None
            and result.tokens
            and Move(here, there, f"a-{hop}", f"a-{hop + 1}").run(steps_between=1)
        ):
            here, there, hop = there, here, hop + 1
    return result, hop
