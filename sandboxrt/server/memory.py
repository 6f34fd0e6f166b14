"""Memory that is free, given back to the system.

What a flood of output or sockets took is free when they have ended, but glibc keeps it for the process: the pages lie
between others that are in use. ``malloc_trim`` gives them back. Other C libraries have neither it nor the need.

Source: ours; the figures are those of ``mallinfo2`` (glibc 2.33 and later).
"""

from __future__ import annotations

import ctypes
import resource
from typing import Final

import attrs
import trio

__all__ = ["Memory"]

_EVERY_S: Final = 10.0
_WORTH_BYTES: Final = 32 * 1024**2


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    )


@attrs.define
class Memory:
    """Looks now and then how much is free, and gives it back when that has become much more."""

    _least_bytes: int | None = None
    """The least that this process took since memory was given back; more than that may be worth it again."""

    async def run(self) -> None:
        """Look for ever; returns at once where this C library has nothing to look at."""
        library = ctypes.CDLL(None)
        if not hasattr(library, "mallinfo2") or not hasattr(library, "malloc_trim"):
            return
        while True:
            await trio.sleep(_EVERY_S)
            # In a thread, since it looks through all that is free; other threads wait for parts of that alone.
            await trio.to_thread.run_sync(self.look, library)

    def look(self, library: ctypes.CDLL) -> None:
        """Give back what is free if that is worth it. Blocking."""
        library.mallinfo2.restype = _Mallinfo2
        free, resident = int(library.mallinfo2().fordblks), _resident_bytes()
        if self._least_bytes is None:
            self._least_bytes = resident
        self._least_bytes = min(self._least_bytes, resident)
        if min(free, resident - self._least_bytes) >= _WORTH_BYTES:
            library.malloc_trim(ctypes.c_size_t(0))
            self._least_bytes = _resident_bytes()


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize()
