"""How the C library hands out large buffers on the CPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3


def keep_large_buffers() -> bool:
    """Let freed buffers stay with the process, so that the next step reuses them.

    By default glibc maps every large tensor afresh and gives it back when it is freed; the kernel
    then zeroes its pages again at first touch. Measured on a 2-core cloud machine with a
    four-layer MLP on 8 192 positions, width 256: 108 000 page faults and 1.06 s a training step
    without, 3 000 at most and 0.73 s with it; the resident size grew from 0.77 to 0.95 GB.

    Call it once, before the first large tensor. It holds for the whole process.

    Returns:
        Whether the C library took the setting; False where it is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl and others
        return False
    settings = {_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: (1 << 31) - 1, _M_TOP_PAD: 1 << 26}
    taken = [mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in settings.items()]
    return all(taken)
