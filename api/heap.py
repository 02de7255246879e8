"""How much freed memory a process keeps: glibc's allocator, told not to keep what large arrays leave behind.

By default glibc raises its own limits to the largest block that was ever freed (32 MiB), so that a process whose
columns have doubled keeps tens of MB for nothing: 80 bytes a driver at a million drivers. Blocks beyond
MMAP_BYTES go back to the system at once; what numpy needs for a moment is smaller and stays fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

MMAP_BYTES = 4 * 1024 * 1024
TRIM_BYTES = 4 * 1024 * 1024
#: From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def bound_the_heap() -> None:
    """For the whole process; does nothing where the allocator is another (musl, macOS)."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES)
