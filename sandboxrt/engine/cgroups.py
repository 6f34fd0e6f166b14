"""The control groups of one sandbox: made, read, frozen, killed and removed in every hierarchy of the host.

As root, the OCI runtime puts limits on the sandbox's groups and the first process into them; the groups of commands are
made below. What is here prepares the ground for it, and does with the groups what the runtime's command line would be
too slow for.

An ordinary user's groups are *nested* (:attr:`~sandboxrt.engine.hierarchy.Hierarchy.nested`). A runtime gives the group
that it is told of to the container's root, who is another user outside: nobody on this side could then make a command's
group in it, nor move anything there. So it is told of none. The limits are on a folder that stays the user's; the
launcher joins ``init`` in it before it becomes the runtime, and the groups of commands are beside that. (Root keeps the
first form: it is the runtime that guards devices, in the group that it is told of and all below.)
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from sandboxrt.engine.bundle import CPU_PERIOD_US, cpu_quota_us
from sandboxrt.engine.cgroup_events import CgroupEvents, read_flags, wait_for
from sandboxrt.engine.cgroup_folder import (
    is_empty,
    is_frozen,
    is_v2,
    kill,
    make,
    members,
    read_number,
    remove_one,
    remove_with_children,
    set_frozen,
    signal_members,
    write,
    write_all,
)
from sandboxrt.engine.hierarchy import FREEZER, LIMITING, Hierarchy
from sandboxrt.models import Limits
from sandboxrt.threads import run_blocking

__all__ = ["CgroupCommandGroup", "SandboxCgroups", "Usage"]

T = TypeVar("T")

_THREADS = 16
# These system calls can wait for the kernel's grace periods, so not on trio's thread; and never behind slower work.
_limiters: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("cgroup threads")

_FREEZE_TIMEOUT_S = 5.0
_REMOVE_TIMEOUT_S = 5.0
_FIRST_PROCESS = "init"


async def _in_thread(function: Callable[[], T]) -> T:
    try:
        limiter = _limiters.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_THREADS)
        _limiters.set(limiter)
    return await run_blocking(limiter, function)


async def _remove(folders: list[Path], remove: Callable[[Path], bool]) -> None:
    """Remove groups; the last process of one may still be on its way out.

    Raises:
        OSError: ``EBUSY``: it is not empty after the time that dying takes.
    """
    pause_s = 0.001
    deadline = trio.current_time() + _REMOVE_TIMEOUT_S
    while True:
        tried = list(folders)
        folders = await _in_thread(lambda: [folder for folder in tried if not remove(folder)])  # noqa: B023
        if not folders:
            return
        if trio.current_time() > deadline:
            raise OSError(errno.EBUSY, "processes are still in the control group", str(folders[0]))
        await trio.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.1)


@attrs.frozen
class Usage:
    """What a sandbox uses now; a field is ``None`` where the host does not count it.

    Attributes:
        memory_bytes: Memory, page cache included.
        memory_peak_bytes: The most that it was.
        cpu_us: CPU time since it was made, in microseconds.
        pids: Processes and threads.
    """

    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    cpu_us: int | None = None
    pids: int | None = None


@attrs.define
class CgroupCommandGroup:
    """The processes of one command: a control group below the sandbox's. Implements ``base.CommandGroup``."""

    folder: Path
    _events: CgroupEvents | None = None

    async def add(self, host_pid: int) -> None:
        """Move one process into the group, which is made by the first call.

        Raises:
            OSError: The kernel refused, or the process is gone (``ESRCH``).
        """
        await _in_thread(lambda: self._add(host_pid))

    def _add(self, host_pid: int) -> None:
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir()
        write(self.folder / "cgroup.procs", str(host_pid))

    async def signal(self, signum: int) -> None:
        """Send a signal to every process of the group, as of now."""
        if signum == signal.SIGKILL:
            await self.kill()
            return
        await _in_thread(lambda: signal_members(self.folder, signum))

    async def kill(self) -> None:
        """SIGKILL for every process of the group, those being forked included, even when it is frozen."""
        await _in_thread(lambda: kill(self.folder))

    async def wait_empty(self) -> None:
        """Wait until no process is left in the group. Can be cancelled and called again."""
        await wait_for(lambda: is_empty(self.folder), self._events, self.folder / "cgroup.events")

    async def remove(self) -> None:
        """Free the group. Idempotent; waits a bounded time for its last processes to go.

        Raises:
            OSError: ``EBUSY``: processes are still in it.
        """
        await _remove([self.folder], remove_one)


@attrs.define
class SandboxCgroups:
    """The control groups of one sandbox in every tree of the host.

    Attributes:
        hierarchy: The host's trees.
        id: The sandbox's id.
    """

    hierarchy: Hierarchy
    id: str
    _events: CgroupEvents | None = None
    _numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))
    _seen_oom_kills: int = 0

    @property
    def runtime_path(self) -> str | None:
        """The value of ``cgroupsPath`` in the runtime's configuration; ``None`` where it is told of no group."""
        return None if self.hierarchy.nested else self.hierarchy.cgroups_path(self.id)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The sandbox's folder in every tree; some may not exist."""
        return tuple(self.hierarchy.folder(mount, self.id) for mount in self.hierarchy.mounts)

    @property
    def tree_folder(self) -> Path | None:
        """The folder that holds the sandbox's processes together for killing and freezing: v2 first, else v1."""
        mount = self.hierarchy.unified or self.hierarchy.v1.get(FREEZER)
        return None if mount is None else self.hierarchy.folder(mount, self.id)

    @property
    def join_paths(self) -> tuple[Path, ...]:
        """Files into which the launcher must write ``0`` before the runtime, because the runtime will not.

        That is the v2 tree of a hybrid host, which crun is not shown, and every tree where groups are nested.
        """
        if self.hierarchy.nested:
            return tuple(folder / _FIRST_PROCESS / "cgroup.procs" for folder in self.folders)
        unified = self.hierarchy.unified
        if unified is None or not self.hierarchy.v1:
            return ()
        return (self.hierarchy.folder(unified, self.id) / "cgroup.procs",)

    def limit_files(self, limits: Limits, *, swap: bool) -> Iterator[tuple[Path, str]]:
        """The files of its groups that enforce limits, and what to write into them: those that this host has.

        Args:
            limits: Fields that are ``None`` are not enforced.
            swap: Whether to limit swap along with memory.
        """
        v1 = self.hierarchy.v1
        texts: list[tuple[str, str, str]] = []
        if limits.mem_bytes is not None:
            memory = str(limits.mem_bytes)
            texts.append(("memory", "memory.limit_in_bytes" if "memory" in v1 else "memory.max", memory))
            if swap:
                name, text = ("memsw.limit_in_bytes", memory) if "memory" in v1 else ("swap.max", "0")
                texts.append(("memory", f"memory.{name}", text))
        if limits.pids is not None:
            texts.append(("pids", "pids.max", str(limits.pids)))
        if limits.vcpus is not None:
            quota = str(cpu_quota_us(limits.vcpus))
            if "cpu" in v1:
                texts.append(("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US)))
                texts.append(("cpu", "cpu.cfs_quota_us", quota))
            else:
                texts.append(("cpu", "cpu.max", f"{quota} {CPU_PERIOD_US}"))
        for controller, name, text in texts:
            folder = self.hierarchy.limiting_folder(controller, self.id)
            if folder is not None:
                yield folder / name, text

    async def limit(self, limits: Limits, *, swap: bool) -> None:
        """Enforce limits where groups are nested; elsewhere the runtime does. See :meth:`limit_files`.

        To be called when the first process waits for orders: what the runtime itself takes, be it more than the
        sandbox may have, is not counted then.

        Raises:
            OSError: The kernel refused.
        """
        if self.hierarchy.nested:
            files = list(self.limit_files(limits, swap=swap))
            await _in_thread(lambda: write_all(files))

    async def prepare(self) -> None:
        """Make the sandbox's folder in every tree, with the controllers on, so that the runtime finds it.

        With all of them in place, nobody who ends meanwhile can remove the folder above (it is not empty).

        Raises:
            OSError: The kernel refused; what was made stays for :meth:`remove`.
        """
        await _in_thread(self._prepare)

    def _prepare(self) -> None:
        for mount in self.hierarchy.mounts:
            folder = self.hierarchy.folder(mount, self.id)
            make(folder)
            if self.hierarchy.nested:
                make(folder / _FIRST_PROCESS)
            if mount == self.hierarchy.unified and self.hierarchy.controllers - self.hierarchy.v1.keys():
                self._enable(folder.parent)
        cpuset = self.hierarchy.v1.get("cpuset")
        if cpuset is not None:
            self._inherit_cpuset(cpuset)

    def _enable(self, parent: Path) -> None:
        """Hand the limiting controllers of a v2 tree down to the sandboxes. Those that v1 trees have are not there."""
        for folder in (parent.parent, parent):
            control = folder / "cgroup.subtree_control"
            offered = (folder / "cgroup.controllers").read_text().split()
            wanted = LIMITING.intersection(offered) - set(control.read_text().split())
            if wanted:
                write(control, " ".join(f"+{name}" for name in sorted(wanted)))

    def _inherit_cpuset(self, mount: Path) -> None:
        """A new v1 cpuset has no cpu and no memory node, and takes no process until it has."""
        folder = self.hierarchy.folder(mount, self.id)
        for name in ("cpuset.cpus", "cpuset.mems"):
            inherited = (folder.parent / name).read_text().strip()
            if not inherited:
                inherited = (folder.parent.parent / name).read_text().strip()
                write(folder.parent / name, inherited)
            write(folder / name, inherited)

    def command_group(self) -> CgroupCommandGroup | None:
        """An empty group for one more command, or ``None`` where this host cannot hold a command's tree together."""
        parent = self.tree_folder
        return None if parent is None else CgroupCommandGroup(parent / f"c{next(self._numbers)}", self._events)

    def oom_kills(self) -> int:
        """How many processes the kernel has killed here for lack of memory. Reads one small file of the kernel's.

        The last count stays when the group is gone; 0 where nobody counts.
        """
        folder = self.hierarchy.limiting_folder("memory", self.id)
        if folder is not None:
            name = "memory.oom_control" if "memory" in self.hierarchy.v1 else "memory.events"
            self._seen_oom_kills = max(self._seen_oom_kills, read_flags(folder / name).get("oom_kill", 0))
        return self._seen_oom_kills

    def members(self) -> frozenset[int]:
        """The processes in any of its groups, as far as they have an id in our pid namespace."""
        return frozenset().union(*(members(folder) for folder in self.folders))

    async def usage(self) -> Usage:
        """What the sandbox uses now."""
        return await _in_thread(self._usage)

    def _usage(self) -> Usage:
        def number(controller: str, v1_name: str, v2_name: str) -> int | None:
            folder = self.hierarchy.limiting_folder(controller, self.id)
            if folder is None:
                return None
            return read_number(folder / (v1_name if controller in self.hierarchy.v1 else v2_name))

        return Usage(
            memory_bytes=number("memory", "memory.usage_in_bytes", "memory.current"),
            memory_peak_bytes=number("memory", "memory.max_usage_in_bytes", "memory.peak"),
            cpu_us=self._cpu_us(),
            pids=number("pids", "pids.current", "pids.current"),
        )

    def _cpu_us(self) -> int | None:
        if "cpuacct" in self.hierarchy.v1:
            spent_ns = read_number(self.hierarchy.folder(self.hierarchy.v1["cpuacct"], self.id) / "cpuacct.usage")
            return None if spent_ns is None else spent_ns // 1000
        if self.hierarchy.unified is None:
            return None
        return read_flags(self.hierarchy.folder(self.hierarchy.unified, self.id) / "cpu.stat").get("usage_usec")

    async def freeze(self) -> None:
        """Stop all processes; when it returns, every one stands still.

        Raises:
            OSError: They did not come to a halt in time (they run again then), or no tree can freeze.

        Cancellation: they run again.
        """
        folder = self.tree_folder
        if folder is None:
            raise OSError(errno.EOPNOTSUPP, "this host has no control groups that can freeze")
        try:
            await _in_thread(lambda: set_frozen(folder, frozen=True))
            with trio.fail_after(_FREEZE_TIMEOUT_S):
                await wait_for(lambda: is_frozen(folder), self._events, folder / "cgroup.events")
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await self.thaw()
            if isinstance(error, trio.TooSlowError):
                raise TimeoutError(errno.ETIMEDOUT, "the processes do not stand still", str(folder)) from None
            raise

    @property
    def thawing(self) -> tuple[Path, str]:
        """The file of the tree that freezes, and what written into it lets all processes run again.

        Raises:
            OSError: No tree can freeze.
        """
        folder = self.tree_folder
        if folder is None:
            raise OSError(errno.EOPNOTSUPP, "this host has no control groups that can freeze")
        return (folder / "cgroup.freeze", "0") if is_v2(folder) else (folder / "freezer.state", "THAWED")

    async def thaw(self) -> None:
        """Let all processes run again. Harmless when they do."""
        folder = self.tree_folder
        if folder is not None:
            await _in_thread(lambda: set_frozen(folder, frozen=False))

    async def kill_all(self) -> None:
        """SIGKILL for every process of the sandbox, frozen or not. Harmless when there is none."""
        folder = self.tree_folder or next(iter(self.folders), None)
        if folder is not None:
            await _in_thread(lambda: kill(folder))

    async def wait_empty(self) -> None:
        """Wait until no process is left in the sandbox. Can be cancelled and called again."""
        folder = self.tree_folder
        if folder is not None:
            await wait_for(lambda: is_empty(folder), self._events, folder / "cgroup.events")

    async def remove(self) -> None:
        """Remove the sandbox's folders from every tree, and the folder above when it was the last. Idempotent.

        Raises:
            OSError: ``EBUSY``: processes are still in one after the time that dying takes.
        """
        await _remove(list(self.folders), remove_with_children)
        await _in_thread(self._remove_parents)

    def _remove_parents(self) -> None:
        for mount in self.hierarchy.mounts:
            with contextlib.suppress(OSError):
                self.hierarchy.folder(mount).rmdir()
