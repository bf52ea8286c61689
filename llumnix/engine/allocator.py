"""glibc's allocator, set up for an engine that computes on the CPU."""

from __future__ import annotations

import ctypes

# mallopt's names in malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT_BYTES = 512 * 2**20
_GROWTH_BYTES = 64 * 2**20
_LARGEST_MMAP_THRESHOLD_BYTES = 32 * 2**20  # glibc takes no larger one


def keep_freed_memory() -> bool:
    """Have memory that one step frees serve the next; False where the C library is not glibc.

    Every step allocates its activations anew. By default the large ones go back to the kernel in between, and
    come again page by page, each with a fault.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(
        mallopt(name, value)
        for name, value in (
            (_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD_BYTES),
            (_M_TRIM_THRESHOLD, _KEPT_BYTES),
            (_M_TOP_PAD, _GROWTH_BYTES),
        )
    )
