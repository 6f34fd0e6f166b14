"""Finds out what isolation this host gives to this user, by doing it once with throw-away things.

What is tried is what sandboxes do: the launcher mounts, the runtime runs a container with the configuration of a real
one. A kernel that has a feature but refuses it here (a container in a container, a security module, a missing device)
is found out this way and no other. Everything is removed again, also after a cancel.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from sandboxrt.engine.bundle import INIT_PATH, BundlePlan, bundle_config
from sandboxrt.engine.causes import Surroundings
from sandboxrt.engine.cgroups import SandboxCgroups
from sandboxrt.engine.delegation import claim
from sandboxrt.engine.disk import DiskTemplates
from sandboxrt.engine.findings import HostFacts, RuntimeFacts, Trial, isolation_report
from sandboxrt.engine.hierarchy import CgroupKind, Hierarchy, this_host
from sandboxrt.engine.idmap import (
    UID_BLOCK_COUNT,
    UID_BLOCK_SIZE,
    UsernsFds,
    overlapping_ranges,
    read_subids,
    uid_base,
)
from sandboxrt.engine.init.build import build_tool
from sandboxrt.engine.launch import __file__ as _launch_package
from sandboxrt.engine.own_userns import SANDBOX_IDS, SUBID_FILES, reason, run_in_userns, run_tool, user_name
from sandboxrt.engine.remove_tree import remove_tree
from sandboxrt.engine.surroundings import look_around
from sandboxrt.errors import EngineUnavailableError, HostDiskFullError, ResourceCreationError
from sandboxrt.models import IsolationReport, Limits
from sandboxrt.room import Room
from sandboxrt.threads import run_blocking

__all__ = [
    "FIRST_SUBORDINATE_ID",
    "LAUNCH_SOURCE",
    "LOOP_LINE",
    "HostProbe",
    "find_runtime",
    "probe_host",
]

T = TypeVar("T")

LAUNCH_SOURCE = Path(_launch_package).with_name("launch.c")
"""The program that prepares mounts for the runtime."""

_CLEANUP_TIMEOUT_S = 10.0
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_FIRST_SLOT = 900
FIRST_SUBORDINATE_ID = 1
"""In an unprivileged user's outer namespace 0 is the user and 1..65536 are its subordinate ids. Containers get the
latter: their root is then not even the user, and their ids are one range, which the kernel asks of a nested map."""

LOOP_LINE = re.compile(r"^loop (\d+)$", re.MULTILINE)
"""What the launcher prints of the loop device that it took."""

_INOTIFY_WORDS = ["put", "/proc/sys/user/max_inotify_instances", "64"]
_STAGES = ("/mnt", "/tmp", "/media")  # noqa: S108 - covered by a tmpfs in the launcher's own mount namespace
# What the launcher says when it was started without instructions: here, that the container's first process ran.
_ALIVE = "instructions: length"

_threads: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("probe threads")
_known: dict[tuple[str, str, int], HostProbe] = {}


@attrs.frozen
class HostProbe:
    """What the host gives (``report``) and what that was concluded from (``facts``)."""

    report: IsolationReport
    facts: HostFacts


async def _in_thread(function: Callable[[], T]) -> T:
    try:
        limiter = _threads.get()
    except LookupError:
        limiter = trio.CapacityLimiter(4)
        _threads.set(limiter)
    return await run_blocking(limiter, function)


async def probe_host(runtime: str, state_dir: Path, *, fresh: bool = False) -> HostProbe:
    """Try out what this host gives to this user. The answer is remembered for the life of the process.

    Args:
        runtime: The OCI runtime's name or path.
        state_dir: Where sandboxes will live; made when it is missing. What works depends on its file system.
        fresh: Try again instead of remembering.

    Cancellation: leaves nothing behind. Source: ours.
    """
    key = (runtime, str(state_dir), os.geteuid())
    known = None if fresh else _known.get(key)
    # A scope can be stopped by whoever runs the machine; there is another one then.
    if known is None or not known.facts.hierarchy.stands:
        known = _known[key] = await _probe(runtime, state_dir)
    return known


async def _probe(runtime: str, state_dir: Path) -> HostProbe:
    found = await find_runtime(runtime)
    try:
        launcher = await build_tool(LAUNCH_SOURCE, state_dir / "tools")
    except EngineUnavailableError as error:
        facts = _nothing_works(found, str(error), await _look_around(state_dir, None))
    else:
        around = await _look_around(state_dir, launcher)
        hierarchy = attrs.evolve(await _in_thread(claim), nested=not around.is_root)
        async with _scratch_folder(state_dir) as folder:
            facts = await _Prober(found, launcher, folder, around, hierarchy).facts()
    return HostProbe(isolation_report(facts), facts)


async def _look_around(state_dir: Path, launcher: Path | None) -> Surroundings:
    user = user_name() or str(os.geteuid())
    return await _in_thread(lambda: look_around(state_dir, launcher, user=user, is_root=_is_root()))


async def find_runtime(name: str) -> RuntimeFacts:
    """Where the runtime is and which version it has. It may be given as a path."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SBIN}")
    if path is None:
        return RuntimeFacts(name=name, path=None)
    done = await _in_thread(lambda: run_tool([path, "--version"]))
    match = re.search(r"version[ :]+(\S+)", done.detail)
    return RuntimeFacts(name=name, path=path, version=match[1] if match else "")


@contextlib.asynccontextmanager
async def _scratch_folder(state_dir: Path) -> AsyncIterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir=state_dir))
    try:
        yield folder
    finally:
        with trio.CancelScope(shield=True):
            await remove_tree(folder)


def _nothing_works(runtime: RuntimeFacts, reason: str, around: Surroundings) -> HostFacts:
    no = Trial(False, reason)
    return HostFacts(
        runtime=runtime,
        is_root=around.is_root,
        user=around.user,
        around=around,
        hierarchy=this_host(),
        container=no,
        cgroups=no,
        userns=no,
        overlay=no,
        idmap=no,
        loop=no,
        inotify=no,
    )


def _is_root() -> bool:
    """Whether we are root on the host, or in a container whose ids are as good: blocks must be there to be mapped."""
    if os.geteuid() != 0:
        return False
    first, needed = uid_base(0), UID_BLOCK_COUNT * UID_BLOCK_SIZE
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, _, count = (int(field) for field in line.split())
        if inside <= first and inside + count >= first + needed:
            return True
    return False


@attrs.define
class _Prober:
    """Tries everything in one scratch folder."""

    runtime: RuntimeFacts
    launcher: Path
    folder: Path
    around: Surroundings
    hierarchy: Hierarchy

    @property
    def is_root(self) -> bool:
        """Whether we are root outside of any user namespace."""
        return self.around.is_root

    async def facts(self) -> HostFacts:
        userns_fd, userns = await self._userns()
        try:
            trials = await self._mount_trials(userns_fd, userns)
            container, cgroups, hide_unified = await self._containers(userns)
        finally:
            if userns_fd is not None:
                os.close(userns_fd)
        ranges = [each for path in SUBID_FILES for each in read_subids(path)]
        return HostFacts(
            runtime=self.runtime,
            is_root=self.is_root,
            user=self.around.user,
            around=self.around,
            hierarchy=self.hierarchy,
            container=container,
            cgroups=cgroups,
            hide_unified=hide_unified,
            unified_mount=_unified_mount(),
            swap_limit=self._swap_limit(),
            userns=userns,
            overlay=trials["overlay"],
            idmap=trials["idmap"],
            loop=trials["loop"],
            inotify=trials["inotify"],
            overlaps=overlapping_ranges(ranges),
            pid_max=_pid_max(),
        )

    async def _userns(self) -> tuple[int | None, Trial]:
        """A user namespace with the ids that sandboxes of this user get."""
        namespaces = UsernsFds(self.launcher)
        try:
            if self.is_root:
                return await namespaces.open(uid_base(UID_BLOCK_COUNT - 1)), Trial(True)
            # To make one is not enough: a security module may let it be made and refuse what it is for.
            return None, await self._launch_in_userns([])
        except (OSError, subprocess.SubprocessError) as error:
            return None, Trial(False, f"no user namespace with {SANDBOX_IDS} ids: {error}")

    async def _mount_trials(self, userns_fd: int | None, userns: Trial) -> dict[str, Trial]:
        if not self.is_root:
            overlay = await self._launch_in_userns(self._overlay_words("userxattr")) if userns.ok else userns
            inotify = await self._launch_in_userns(_INOTIFY_WORDS) if userns.ok else userns
            no = Trial(False, "needs root")
            return {"overlay": overlay, "idmap": no, "loop": no, "inotify": inotify}
        trials = {"overlay": await self._launch(["ns", *self._overlay_words("index=off")])}
        slot = str(_FIRST_SLOT)
        if userns_fd is None:
            trials["idmap"] = trials["inotify"] = userns
        else:
            lower = str(self._folder("lower"))
            fd = str(userns_fd)
            trials["idmap"] = await self._launch(["ns", "clone", slot, lower, "idmap", slot, fd], userns_fd)
            trials["inotify"] = await self._launch(["enter", fd, *_INOTIFY_WORDS], userns_fd)
        trials["loop"] = await self._loop()
        return trials

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def _overlay_words(self, option: str) -> list[str]:
        lower, upper, work, merged = (str(self._folder(name)) for name in ("lower", "upper", "work", "merged"))
        return ["overlay", merged, f"lowerdir={lower},upperdir={upper},workdir={work},{option}"]

    async def _loop(self) -> Trial:
        image, mounted = self.folder / "disk.img", self._folder("mounted")
        try:
            await DiskTemplates(self.folder / "templates", Room(self.folder.parent)).clone(1, image)
        except HostDiskFullError:
            raise  # nothing that a property of the host could be blamed for
        except (OSError, ResourceCreationError) as error:
            return Trial(False, str(error))
        fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        try:
            return await self._launch(["ns", "disk", str(mounted), str(fd), "discard", ""], fd)
        finally:
            os.close(fd)

    async def _launch(self, words: list[str], *fds: int) -> Trial:
        """Run the launcher with instructions; where the last of them starts no program, it ends with 0."""
        text = "".join(f"{word}\0" for word in words)
        return _told(await _in_thread(lambda: run_tool([str(self.launcher)], text, fds)))

    async def _launch_in_userns(self, words: list[str], *fds: int) -> Trial:
        """The same, first into a user and mount namespace with an unprivileged user's own maps."""
        text = "".join(f"{word}\0" for word in words)
        return _told(await _in_thread(lambda: run_in_userns(self.launcher, text, fds)))

    def _swap_limit(self) -> bool:
        if not self.hierarchy.usable:
            return False
        if "memory" in self.hierarchy.v1:
            return (self.hierarchy.v1["memory"] / "memory.memsw.limit_in_bytes").exists()
        # The root group of a v2 tree has no such file; memory.stat names swap where it is counted at all.
        return Path("/proc/swaps").exists()

    async def _containers(self, userns: Trial) -> tuple[Trial, Trial, bool]:
        """Run a container as sandboxes are run, then with less, until one runs.

        Returns:
            Whether one ran, whether it had limits, and whether the runtime had to be kept from seeing a hierarchy.
        """
        if self.runtime.path is None:
            return Trial(False, f"the OCI runtime {self.runtime.name} is not installed"), Trial(False), False
        if not userns.ok:
            return userns, userns, False
        hybrid = self.hierarchy.kind is CgroupKind.HYBRID
        limited = self.hierarchy.usable
        attempts = [(hide, groups) for groups in (True, False) for hide in (False, True)]
        words: list[str] = []
        for hide, groups in attempts:
            if (hide and not hybrid) or (groups and not limited):
                continue
            ran = await self._container(hide=hide, groups=groups)
            if ran.ok:
                why = "" if groups else words[0] if limited else self.hierarchy.reason
                return ran, Trial(groups, why), hide
            words.append(ran.detail)
        # The last attempt asked for the least, so what it failed for is in the way of all.
        return Trial(False, f"{self.runtime.label} does not run a container here: {words[-1]}"), Trial(False), False

    async def _container(self, *, hide: bool, groups: bool) -> Trial:
        name = secrets.token_hex(16)
        cgroups = SandboxCgroups(self.hierarchy, name)
        told = cgroups.runtime_path if groups else None
        config = json.dumps(bundle_config(self._plan(told)))
        assert self.runtime.path is not None
        flags = [*self.runtime.flags(with_cgroups=told is not None), "--root", f"{self.stage}/run"]
        start = ["exec", self.runtime.path, *flags, "run", "--bundle", f"{self.stage}/bundle", name]
        program = os.open(self.launcher, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if groups:
                await cgroups.prepare()
                await cgroups.limit(self._limits, swap=False)
            stage = _stage_words(self.stage, self.container_root, config, program)
            path = _unified_mount()
            # A group is joined before its tree is hidden.
            joins = [word for path in cgroups.join_paths for word in ("put", str(path), "0")] if groups else []
            if self.is_root:
                done = await self._launch(["ns", *joins, *(["hide", path] if hide else []), *stage, *start], program)
            else:
                hidden = ["veil", path] if hide else []
                done = await self._launch_in_userns([*joins, *hidden, *stage, *start], program)
        except OSError as error:
            return Trial(False, str(error))
        finally:
            os.close(program)
            if groups:
                with trio.move_on_after(_CLEANUP_TIMEOUT_S, shield=True):
                    await cgroups.kill_all()
                    await cgroups.remove()
        return Trial(_ALIVE in done.detail, reason(done.detail))

    @property
    def stage(self) -> str:
        """A folder that can be covered: the runtime is not below it."""
        runtime = Path(self.runtime.path or "/").resolve()
        found = (each for each in _STAGES if Path(each).is_dir() and not runtime.is_relative_to(each))
        return next(found, _STAGES[0])

    @property
    def container_root(self) -> int:
        """The id of the container's root, outside of it."""
        return uid_base(UID_BLOCK_COUNT - 1) if self.is_root else FIRST_SUBORDINATE_ID

    @property
    def _limits(self) -> Limits:
        """Enough for gVisor, whose own kernel is under the limits as well."""
        controllers = self.hierarchy.controllers
        return Limits(
            mem_bytes=512 * 1024**2 if "memory" in controllers else None,
            pids=256 if "pids" in controllers else None,
            vcpus=1.0 if "cpu" in controllers else None,
        )

    def _plan(self, cgroup_path: str | None) -> BundlePlan:
        return BundlePlan(
            hostname="probe",
            rootfs=f"{self.stage}/rootfs",
            tmp_source=f"{self.stage}/tmp",  # noqa: S108
            init_source=f"{self.stage}/program",
            init_argv=(INIT_PATH,),
            id_map=(self.container_root, SANDBOX_IDS),
            cgroup_path=cgroup_path,
            limits=self._limits if cgroup_path is not None else Limits(),
            swap_limit=False,
            max_open_files=min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        )


def _told(done: Trial) -> Trial:
    """Without what the launcher prints for the engine's ears."""
    return Trial(done.ok, LOOP_LINE.sub("", done.detail).strip())


def _stage_words(stage: str, owner: int, config: str, program: int) -> list[str]:
    """Instructions that build a bundle in memory, where the container's root can reach it whoever owns the disk."""
    words = ["cover", stage]
    for folder, mode in (("rootfs", "755"), ("tmp", "1777")):
        words += ["dir", f"{stage}/{folder}", mode, str(owner)]
    # Owned by the container's root, as a sandbox's are: runsc makes mount points in them.
    for folder in ("proc", "dev", "sys", "tmp"):
        words += ["dir", f"{stage}/rootfs/{folder}", "755", str(owner)]
    words += ["dir", f"{stage}/run", "711", "0", "dir", f"{stage}/bundle", "755", "0"]
    words += ["file", f"{stage}/bundle/config.json", "644", "0", config]
    return [*words, "copy", f"{stage}/program", "755", str(program), "devices", str(owner)]


def _pid_max() -> int:
    return int(Path("/proc/sys/kernel/pid_max").read_text())


def _unified_mount() -> str:
    """Where the second hierarchy of a hybrid host is mounted, also when we may not write to it."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if "cgroup2" in fields[6:]:
            return fields[4]
    return "/sys/fs/cgroup/unified"
