"""What sandboxes leave on a host, so that tests can say: nothing."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from tests.stretch import stretched

__all__ = ["Footprint", "assert_nothing_left"]

_CGROUPS = Path("/sys/fs/cgroup")
_LOOPS = Path("/sys/block")


@attrs.frozen
class Footprint:
    """Everything on this host that could be a sandbox's, at one moment."""

    processes: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    loops: frozenset[str]
    descriptors: int
    folders: frozenset[str]

    @classmethod
    def take(cls, *state_dirs: Path) -> Footprint:
        """Look at the host; of ``state_dirs`` the folders of sandboxes are listed."""
        return cls(
            processes=frozenset(_processes()),
            mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
            # os.walk passes over folders that vanish while it looks; Path.glob raises.
            cgroups=frozenset(folder for folder, _, _ in os.walk(_CGROUPS) if "/sandboxrt/" in folder),
            loops=frozenset(_loops()),
            descriptors=len(os.listdir("/proc/self/fd")),
            folders=frozenset(
                str(path) for state_dir in state_dirs for path in (state_dir / "sandboxes").glob("*") if path.exists()
            ),
        )

    def more_than(self, before: Footprint) -> dict[str, object]:
        """What is here that was not there ``before``."""
        grown: dict[str, object] = {
            name: sorted(getattr(self, name) - getattr(before, name))
            for name in ("processes", "mounts", "cgroups", "loops", "folders")
        }
        grown["descriptors"] = max(0, self.descriptors - before.descriptors)
        return {name: what for name, what in grown.items() if what}


def _processes() -> Iterator[str]:
    """Processes that could be a sandbox's: in another pid namespace than ours, or a tool of the engine's."""
    ours = os.readlink("/proc/self/ns/pid")
    tools = {"crun", "runc", "runsc", "launch", "skopeo", "umoci", "init"}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or entry.name == "1":
            continue
        try:
            name = (entry / "comm").read_text().strip()
            # A zombie has no namespaces any more; it is still something that somebody left.
            elsewhere = os.readlink(entry / "ns/pid") != ours
        except FileNotFoundError:
            continue
        except OSError:
            elsewhere = False
        if elsewhere or name.split(":")[0] in tools:
            yield f"{entry.name} {name}"


def _loops() -> Iterator[str]:
    """Loop devices over files of this run: they have no namespace, and those of others come and go meanwhile."""
    ours = tempfile.gettempdir()
    for backing in _LOOPS.glob("loop*/loop/backing_file"):
        try:
            file = backing.read_text().strip()
        except OSError:
            continue
        if file.startswith(ours):
            yield f"{backing.parts[3]} {file}"


@contextmanager
def assert_nothing_left(*state_dirs: Path, settle_s: float = 5.0) -> Iterator[Footprint]:
    """Fail if the block leaves anything on the host; the kernel gets ``settle_s`` seconds to finish freeing."""
    before = Footprint.take(*state_dirs)
    yield before
    deadline = time.monotonic() + stretched(settle_s)
    while left := Footprint.take(*state_dirs).more_than(before):
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind: {left}")
        time.sleep(0.05)
