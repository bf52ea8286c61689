"""How a transfer is cut into chunks; both sides compute the same cut."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes [start, end) of each of `num_blocks` blocks, from the transfer's `first`-th block on."""

    first: int
    num_blocks: int
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """What the chunk takes in staging."""
        return self.num_blocks * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Whole blocks together while they fit into a chunk; a larger block is cut by itself."""

    num_blocks: int
    bytes_per_block: int
    chunk_bytes: int

    @property
    def _blocks_per_chunk(self) -> int:
        return self.chunk_bytes // self.bytes_per_block

    @property
    def _chunks_per_block(self) -> int:
        return -(-self.bytes_per_block // self.chunk_bytes)

    @property
    def num_chunks(self) -> int:
        """None for no blocks."""
        if self._blocks_per_chunk:
            return -(-self.num_blocks // self._blocks_per_chunk)
        return self.num_blocks * self._chunks_per_block

    def chunk(self, index: int) -> Chunk:
        """The chunk of that index, 0 <= index < num_chunks."""
        per_chunk = self._blocks_per_chunk
        if per_chunk:
            first = index * per_chunk
            return Chunk(first, min(per_chunk, self.num_blocks - first), 0, self.bytes_per_block)
        first, part = divmod(index, self._chunks_per_block)
        start = part * self.chunk_bytes
        return Chunk(first, 1, start, min(start + self.chunk_bytes, self.bytes_per_block))
