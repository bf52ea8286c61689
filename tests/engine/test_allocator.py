"""What freed memory costs when it is needed again; in a process of its own, as the setting is for good."""

from __future__ import annotations

import subprocess
import sys

CHILD = """
import ctypes, resource, sys, threading
from llumnix.engine.allocator import keep_freed_memory

def steps():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    for turn in range(20):
        if turn == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [libc.malloc(4 * 2**20) for _ in range(4)]
        for block in blocks:
            ctypes.memset(block, 1, 4 * 2**20)
        for block in blocks:
            libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "keep":
    assert keep_freed_memory()
engine = threading.Thread(target=steps)
engine.start()
engine.join()
"""


def page_faults(how: str) -> int:
    """Of ten steps, after ten others."""
    command = [sys.executable, "-c", CHILD, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_step_finds_the_memory_of_the_one_before() -> None:
    assert page_faults("keep") < 100 < page_faults("default")
