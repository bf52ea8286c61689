"""A worker extension whose blocks a test can read and write from another process."""

from __future__ import annotations

import ctypes
import signal
import time
from pathlib import Path
from typing import Any

import torch

from llumnix.engine.migration.worker import MigrationWorker

_PR_SET_PDEATHSIG = 1

# Imported by workers only: a test run that is cut off takes them along, even those that wait for each other.
ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class RankWorker(MigrationWorker):
    """Stands in for a transport between workers that are processes of their own."""

    def llumnix_test_read(self: Any, blocks: list[int]) -> list[bytes]:
        """These blocks of every layer, one item per layer."""
        return [view[blocks].numpy().tobytes() for view in self.llumnix_kv_views()]

    def llumnix_test_write(self: Any, blocks: list[int], layers_of_ranks: list[list[bytes]]) -> None:
        """What llumnix_test_read of the same rank returned."""
        for view, data in zip(self.llumnix_kv_views(), layers_of_ranks[self.rank], strict=True):
            values = torch.frombuffer(bytearray(data), dtype=view.dtype)
            view[blocks] = values.view(len(blocks), *view.shape[1:])

    def llumnix_test_stay_until(self: Any, path: str, limit_s: float) -> bool:
        """Be busy, as with a long step, until the file is there; False if it took longer than the limit."""
        deadline = time.monotonic() + limit_s
        while not Path(path).exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True
