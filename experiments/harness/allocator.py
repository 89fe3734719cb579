"""The C library's allocator, told to keep what a program frees."""

import ctypes
import os
import sys

_LARGEST = 2**31 - 1  # what mallopt, which takes an int, has for "never"
_OPTIONS = (  # mallopt's number (malloc.h), the environment's name for it, our value
    (-4, "MALLOC_MMAP_MAX_", 0),
    (-1, "MALLOC_TRIM_THRESHOLD_", _LARGEST),
)


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next request; call it before any thread starts. Nothing on other systems.

    XLA's CPU backend requests the temporary memory of a compiled function, often tens of megabytes, at every call. By
    glibc's defaults such memory goes back to the kernel when it is freed, and at the next call every page of it is
    a page fault again: a quarter of the time of a Rainbow update. Kept, it costs what the process needed at its peak,
    up to 2 GB more than it needs. An option that the environment sets (`MALLOC_TRIM_THRESHOLD_`, ...) stays as it is;
    the others are set there, too, for the processes that this one starts.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, name, value in _OPTIONS:
            if name not in os.environ:
                mallopt(option, value)
                os.environ[name] = str(value)
