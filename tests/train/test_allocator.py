import subprocess
import sys

import pytest

from counterpoint.train import allocator

# Without torch: a bare process has few other page faults, and starts at once.
COUNT_FAULTS = """
import ctypes, resource, runpy, sys
keep_large_buffers = runpy.run_path(sys.argv[1])["keep_large_buffers"]
if sys.argv[2] == "keep":
    assert keep_large_buffers()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = ctypes.c_void_p
size = 64 << 20  # more than glibc keeps by itself
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    buffer = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    ctypes.memset(buffer, 1, size)
    libc.free(buffer)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_kept_buffers_save_page_faults() -> None:
    faults = {}
    for mode in ("keep", "default"):
        command = [sys.executable, "-c", COUNT_FAULTS, allocator.__file__, mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[mode] = int(done.stdout)
    assert faults["keep"] < 0.3 * faults["default"]  # only the first of five uses faults
