"""What a container has on the host besides its state folder, and how all of it is freed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import trio

from sandboxrt.engine.capture import DISK_IMAGE
from sandboxrt.engine.cgroup_events import CgroupEvents
from sandboxrt.engine.cgroups import SandboxCgroups
from sandboxrt.engine.hierarchy import Hierarchy
from sandboxrt.engine.launch.plan import LOOP_NOTE
from sandboxrt.engine.loops import wait_detached
from sandboxrt.engine.remains import record_folder, recorded_groups, records_in
from sandboxrt.engine.remove_tree import remove_tree

__all__ = ["Holdings", "holdings_of", "records_of"]

_CLOSE_TIMEOUT_S = 10.0


@attrs.define(eq=False)
class Holdings:
    """What a container has on the host besides its state folder.

    Attributes:
        id: The container's.
        record: The runtime's record of it.
        cgroups: Its control groups, or ``None``.
        init: A descriptor of its first process, where known.
        image: Its disk image, where it has one.
        loop: Number of the loop device that held the image, where known.
        leave: Ends what the ledger keeps for its disk.
    """

    id: str
    record: Path
    cgroups: SandboxCgroups | None
    init: int | None = None
    image: Path | None = None
    loop: int | None = None
    leave: Callable[[], None] | None = None

    async def free(self) -> None:
        """Kill what is left and free everything. Idempotent.

        Raises:
            RuntimeError: Something could not be freed in time; it names everything that could not.

        Cancellation: shielded; bounded by 10 s as a whole.
        """
        left: list[str] = []
        if self.leave is not None:
            self.leave()
        with trio.CancelScope(shield=True):
            deadline = trio.current_time() + _CLOSE_TIMEOUT_S
            steps: list[tuple[str, Callable[[], Awaitable[object]]]] = [
                ("processes", self._end_processes),
                ("control groups", self._remove_cgroups),
                ("loop device", self._wait_detached),
                ("the runtime's record", self._forget),
            ]
            for what, step in steps:
                if left and step == self._forget:
                    break  # it is what a later try finds the rest by
                try:
                    # Each gets a moment of its own, so that a part that hangs does not leave the others behind.
                    with trio.fail_at(max(deadline, trio.current_time() + 1)):
                        await step()
                except (OSError, trio.TooSlowError) as error:
                    left.append(f"{what} ({str(error) or 'too slow'})")
        if left:
            raise RuntimeError(f"container {self.id} could not be freed in time: {', '.join(left)}")

    async def _end_processes(self) -> None:
        """The end of pid 1 is the end of its namespace: the kernel reports it after all others are gone."""
        if self.init is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.init, signal.SIGKILL)
            if self.cgroups is not None:
                await self.cgroups.thaw()
            await trio.lowlevel.wait_readable(self.init)
            os.close(self.init)
            self.init = None
        elif self.cgroups is not None:
            await self.cgroups.kill_all()
            await self.cgroups.wait_empty()

    async def _remove_cgroups(self) -> None:
        if self.cgroups is not None:
            await self.cgroups.remove()

    async def _wait_detached(self) -> None:
        """The loop device frees itself with the last mount, which the kernel drops after the last process's end."""
        if self.image is not None and self.loop is not None:
            await wait_detached(self.image, self.loop)

    async def _forget(self) -> None:
        await remove_tree(self.record)


def records_of(state_dir: Path) -> list[Path]:
    """The runtime's records that lie in a sandbox's folder, whosever they are."""
    return [path for path in records_in(state_dir) if path.is_dir() and not path.is_symlink()]


def holdings_of(record: Path, container_id: str, hierarchy: Hierarchy, events: CgroupEvents | None) -> Holdings:
    """What a record stands for: the container of that id, or of any other nothing but itself and its disk."""
    hierarchy = recorded_groups(record) or hierarchy
    is_ours = record == record_folder(record.parent, container_id) and hierarchy.usable
    image = record.parent / DISK_IMAGE
    return Holdings(
        container_id,
        record,
        SandboxCgroups(hierarchy, container_id, events) if is_ours else None,
        image=image if image.exists() else None,
        loop=_noted_loop(record),
    )


def _noted_loop(record: Path) -> int | None:
    try:
        return int((record / LOOP_NOTE).read_text())
    except (OSError, ValueError):
        return None
