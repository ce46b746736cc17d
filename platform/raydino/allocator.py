"""What glibc's allocator does with memory that this process frees."""

import ctypes
import os
import sys

# mallopt's numbers in glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Have this process keep the memory it frees, for one whose next step, window or image asks for the same again.

    glibc hands large blocks back to the system, which clears their pages before it lends them anew: 2 ns for four bytes, several
    times what most operations on a CPU take. Does nothing where the environment sets glibc's thresholds, or without glibc.
    """
    if sys.platform != "linux" or any(name in os.environ for name in MALLOC_VARIABLES):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
