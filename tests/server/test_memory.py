"""Memory that a flood took, and gave back to the allocator alone."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes
from sandboxrt.server.memory import Memory

def resident():
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * 4096

library, memory = ctypes.CDLL(None), Memory()
memory.look(library)
for _ in range(2):
    flood = [bytes(100_000) for _ in range(2000)]
    pins = flood[::500]
    full = resident()
    del flood
    before = resident()
    memory.look(library)
    after = resident()
    memory.look(library)
    print(full, before, after)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc 2.33 or later")
def test_it_is_given_back_each_time() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    for line in done.stdout.splitlines():
        full, before, after = map(int, line.split())
        assert before > full - 50 * 2**20, "the allocator gave it back by itself: this proves nothing"
        assert after < full - 100 * 2**20
    assert len(done.stdout.splitlines()) == 2
