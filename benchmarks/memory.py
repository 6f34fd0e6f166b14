"""What sandboxes that do nothing cost in memory: their processes, and what grew elsewhere meanwhile."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterable
from pathlib import Path

import attrs

from benchmarks.contenders.base import Contender

__all__ = ["Footprint", "idle_footprint"]

FIELD = re.compile(r"^(\w+):\s+(\d+) kB", re.MULTILINE)


@attrs.frozen
class Footprint:
    """KiB for each idle sandbox.

    Attributes:
        processes: Proportional set size of the processes that are there for it.
        driver: What the driving process grew by.
        kernel: What the kernel keeps for it: slab, page tables, kernel stacks.
    """

    processes: float
    driver: float
    kernel: float

    @property
    def total(self) -> float:
        return self.processes + self.driver + self.kernel


def _fields(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in FIELD.findall(path.read_text())}


def _proportional(pids: Iterable[int]) -> int:
    return sum(_fields(Path(f"/proc/{pid}/smaps_rollup")).get("Pss", 0) for pid in pids)


def _kernel() -> int:
    found = _fields(Path("/proc/meminfo"))
    return sum(found[name] for name in ("Slab", "PageTables", "KernelStack", "Percpu"))


def idle_footprint(contender: Contender, count: int) -> Footprint:
    """Keep ``count`` sandboxes and see what is more than before."""
    gc.collect()
    own_before, kernel_before = _proportional([os.getpid()]), _kernel()
    with contender.idle(count) as idle:
        gc.collect()
        processes = _proportional(idle.pids)
        driver = _proportional([os.getpid()]) - own_before
        kernel = _kernel() - kernel_before
    return Footprint(processes / count, max(0, driver) / count, max(0, kernel) / count)
