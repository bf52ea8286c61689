"""The things in an engine's model: requests whose every token is known, and a pool of counted blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from llumnix.core.handover.epochs import Epoch, engine_id
from llumnix.core.handover.messages import Prepare

BLOCK_SIZE = 2
NUM_BLOCKS = 30
NUM_SLOTS = 4
CHUNK_TOKENS = 3


def num_blocks_of(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)


@dataclass(frozen=True, slots=True)
class Spec:
    """A client's request; those of one group share the first four prompt tokens."""

    number: int
    num_prompt: int
    num_outputs: int

    @property
    def name(self) -> str:
        return f"r{self.number}"

    def prompt(self) -> list[int]:
        shared = [100 * (self.number % 2) + i for i in range(4)]
        return (shared + [10_000 + 100 * self.number + i for i in range(self.num_prompt)])[: self.num_prompt]

    def output(self, place: int, attempt: int) -> int:
        """A new attempt samples differently, as an unseeded request does."""
        return 1_000_000 * (self.number + 1) + 1_000 * attempt + place

    def is_output(self, token: int, place: int) -> bool:
        """Whether some attempt of this request gives this token at this place."""
        return token // 1_000_000 == self.number + 1 and token % 1_000 == place


@dataclass(slots=True)
class Pool:
    """Blocks of one engine. `touched` says which a transfer may still read or write."""

    touched: Callable[[], set[int]]
    refs: list[int] = field(default_factory=lambda: [0] * NUM_BLOCKS)
    contents: list[list[int]] = field(default_factory=lambda: [[0] * BLOCK_SIZE for _ in range(NUM_BLOCKS)])
    cache: dict[bytes, int] = field(default_factory=dict)
    freed: list[int] = field(default_factory=lambda: list(range(NUM_BLOCKS)))

    def take(self, count: int) -> list[int] | None:
        """New blocks, those that were freed last first; None if there are not enough."""
        if len(self.freed) < count:
            return None
        blocks = [self.freed.pop() for _ in range(count)]
        reused = self.touched() & set(blocks)
        assert not reused, f"blocks {reused} are reused while a transfer may touch them"
        for block in blocks:
            self.refs[block] = 1
            self.contents[block] = [0] * BLOCK_SIZE
        self.cache = {key: block for key, block in self.cache.items() if block not in blocks}
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            if self.refs[block] == 0:
                self.freed.remove(block)
            self.refs[block] += 1

    def give(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.refs[block] -= 1
            assert self.refs[block] >= 0, "given back twice"
            if self.refs[block] == 0:
                self.freed.append(block)


@dataclass(slots=True)
class Entry:
    """A request in an engine. Not `running`: it is in the queue, without blocks or with adopted ones."""

    spec: Spec
    epoch: Epoch
    outputs: list[int]
    priority: int
    computed: int = 0
    in_flight: int = 0
    blocks: list[int] = field(default_factory=list)
    running: bool = False
    frozen_from: int | None = None

    @property
    def id(self) -> str:
        return engine_id(self.spec.name, self.epoch)

    def tokens(self) -> list[int]:
        return self.spec.prompt() + self.outputs


@dataclass(slots=True)
class Reservation:
    prepare: Prepare
    blocks: list[int]
    num_cached: int
