"""The thread of one connection: opens the data plane, then copies chunks, one after the other."""

from __future__ import annotations

import collections
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from llumnix.engine.transport.base import TransportError
from llumnix.engine.transport.blocks import BlockCopier, KVBlocks
from llumnix.engine.transport.chunks import Chunk
from llumnix.engine.transport.plane import Plane
from llumnix.engine.transport.transfer import BlockTransfer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One chunk through one slot; a receiver gets no transfer for a chunk that nobody wants any more."""

    transfer: BlockTransfer | None
    index: int
    slot: int
    num_bytes: int
    chunk: Chunk | None


@dataclass(frozen=True, slots=True)
class Reports:
    """What the worker tells its connection, from its own thread: each must only pass it on to the loop."""

    opened: Callable[[], None]
    copied: Callable[[Job, bool], None]
    """The job and, for a sender, whether the chunk was staged (False: the transfer had ended)."""
    failed: Callable[[str], None]
    closed: Callable[[], None]


class Worker:
    """Ends by `finish`; after its `closed` report it holds nothing any more."""

    def __init__(self, plane: Plane, blocks: KVBlocks, sends: bool, reports: Reports, name: str) -> None:
        self._plane = plane
        self._blocks = blocks
        self._sends = sends
        self._reports = reports
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._clean = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """In order; never waits."""
        self._jobs.put(job)

    def finish(self, clean: bool) -> None:
        """Drops what is queued and closes the plane; never waits."""
        self._clean = clean
        self._stopping.set()
        self._jobs.put(None)
        if not clean:
            self._plane.abort()

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended within that time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._open()
            copier = self._blocks.copier()
            self._reports.opened()
            self._send_all(copier) if self._sends else self._receive_all(copier)
        except TransportError as error:
            self._reports.failed(str(error))
        except Exception as error:  # a CUDA error, say: the connection ends, the instance goes on
            logger.exception("a KV transfer failed")
            self._reports.failed(f"{type(error).__name__}: {error}")
        # A failure without the connection's word: nobody has agreed to anything.
        self._stopping.wait()
        self._close()

    def _open(self) -> None:
        if self._sends:
            self._plane.open_sender()
        else:
            self._plane.open_receiver()

    def _close(self) -> None:
        try:
            self._plane.close(self._clean)
        except Exception:
            logger.exception("a connection of the KV transport did not close properly")
        self._reports.closed()

    def _next(self, wait: bool) -> Job | None:
        """None if there is none, or the worker is to end."""
        try:
            job = self._jobs.get(block=wait)
        except queue.Empty:
            return None
        return None if self._stopping.is_set() else job

    def _send_all(self, copier: BlockCopier) -> None:
        while (job := self._next(wait=True)) is not None:
            staged = self._gather(copier, job)
            self._reports.copied(job, staged)
            if staged:
                self._plane.push(job.slot, job.num_bytes)

    def _gather(self, copier: BlockCopier, job: Job) -> bool:
        transfer, chunk = job.transfer, job.chunk
        if transfer is None or chunk is None:
            return False
        with transfer.guard:
            if transfer.outcome is not None:
                return False
            if job.index == 0:
                copier.wait_for(transfer.fence)
            staging = self._plane.slot(job.slot, job.num_bytes)
            copier.gather(transfer.blocks_of(chunk), chunk.start, chunk.end, staging)
            transfer.num_bytes += job.num_bytes
        return True

    def _receive_all(self, copier: BlockCopier) -> None:
        begun: collections.deque[Job] = collections.deque()
        while not self._stopping.is_set():
            job = self._next(wait=not begun)
            if job is not None:
                self._plane.begin_pull(job.slot, job.num_bytes)
                begun.append(job)
                if len(begun) < self._plane.ahead:
                    continue
            if begun:
                first = begun.popleft()
                self._plane.finish_pull(first.slot, first.num_bytes)
                self._scatter(copier, first)
                self._reports.copied(first, True)

    def _scatter(self, copier: BlockCopier, job: Job) -> None:
        transfer, chunk = job.transfer, job.chunk
        if transfer is None or chunk is None:
            return
        with transfer.guard:
            if transfer.outcome is None:
                if job.index == 0:
                    copier.wait_for(transfer.fence)
                staging = self._plane.slot(job.slot, job.num_bytes)
                copier.scatter(transfer.blocks_of(chunk), chunk.start, chunk.end, staging)
                transfer.num_bytes += job.num_bytes
