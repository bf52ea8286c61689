"""How far the blocks of a request that leaves are copied, and what the next copy takes."""

from __future__ import annotations

from dataclasses import dataclass

from llumnix.core.handover.settings import HandoverSettings


@dataclass(slots=True)
class Stages:
    """Blocks are numbered within the request; those before `num_filled` are at the target.

    Invariants: `num_filled <= end`, once a stage has begun; `num_open` is 0 exactly while no copy is open.
    """

    block_size: int
    settings: HandoverSettings
    num_tokens: int
    num_settled_tokens: int
    num_reserved: int = 0
    num_filled: int = 0
    num_skipped: int = 0
    num_copied: int = 0
    num_stages: int = 0
    end: int = 0
    copy: int = 0
    num_open: int = 0

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def reserved(self, num_cached_blocks: int, num_blocks: int) -> None:
        """The target reserved `num_blocks`; the first ones it holds already."""
        self.num_reserved = num_blocks
        self.num_filled = self.num_skipped = num_cached_blocks

    def to_reserve(self) -> int:
        """Blocks the target should have in all, with room to grow."""
        return self.num_blocks(self.num_tokens) + self.settings.growth_blocks

    def outgrew_reservation(self) -> bool:
        return self.num_blocks(self.num_tokens) > self.num_reserved

    def is_last(self) -> bool:
        """What is left, the partial block counted, is small enough to stop for it; or it never will be."""
        num_left = self.num_blocks(self.num_settled_tokens) - self.num_filled
        return num_left <= self.settings.last_stage_blocks or self.num_stages >= self.settings.max_stages

    def begin(self) -> None:
        """A stage takes the full blocks there are now."""
        self.num_stages += 1
        self.end = self.num_settled_tokens // self.block_size

    def begin_last(self) -> None:
        """The last one takes the partial block too."""
        self.end = self.num_blocks(self.num_settled_tokens)

    def is_complete(self) -> bool:
        """The stage is; the target may hold more than the source has computed."""
        return self.num_filled >= self.end

    def open_copy(self) -> tuple[int, int, int]:
        """Number, first block and number of blocks of the next copy."""
        self.copy += 1
        self.num_open = min(self.end - self.num_filled, self.settings.max_copy_blocks)
        return self.copy, self.num_filled, self.num_open

    def is_more_to_copy(self) -> bool:
        """After the open copy the stage will not be complete yet."""
        return self.num_filled + self.num_open < self.end

    def confirm_copy(self) -> None:
        """The target has the blocks of the open copy, if there is one: count them."""
        self.num_copied += self.num_open

    def close_copy(self, *, done: bool) -> None:
        if done:
            self.num_filled += self.num_open
            self.num_copied += self.num_open
        self.num_open = 0
