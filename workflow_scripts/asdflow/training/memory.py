"""Freed memory stays with the process: large CPU tensors come and go every update, and fetching pages anew costs time."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""glibc's numbers for mallopt(3)."""
LARGEST = 2**31 - 1
SPARE = 64 * 2**20


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to reuse freed memory instead of giving it back; True where that worked.

    By default every tensor above some megabytes is mapped afresh and unmapped when freed, so that each use pays for its
    pages again (a sixth of a pre-training update on the CPU). Peak memory stays; it is only not given back before the end.
    Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = [(M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, SPARE)]
    return all([bool(mallopt(number, value)) for number, value in settings])
