"""Finds out what isolation this host gives to this user, by doing it once with throw-away things.

What is tried is what sandboxes do: the launcher mounts, the runtime runs a container with the configuration of a real
one. A kernel that has a feature but refuses it here (a container in a container, a security module, a missing device)
is found out this way and no other. Everything is removed again, also after a cancel.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import resource
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from sandboxrt.engine.bundle import INIT_PATH, BundlePlan, bundle_config
from sandboxrt.engine.cgroups import SandboxCgroups
from sandboxrt.engine.disk import DiskTemplates
from sandboxrt.engine.findings import HostFacts, RuntimeFacts, Trial, isolation_report
from sandboxrt.engine.hierarchy import CgroupKind, Hierarchy, this_host
from sandboxrt.engine.idmap import (
    UID_BLOCK_COUNT,
    UID_BLOCK_SIZE,
    SubidRange,
    UsernsFds,
    overlapping_ranges,
    read_subids,
    subid_ranges_of,
    uid_base,
)
from sandboxrt.engine.init.build import build_tool
from sandboxrt.engine.launch import __file__ as _launch_package
from sandboxrt.engine.remove_tree import remove_tree
from sandboxrt.errors import EngineUnavailableError, HostDiskFullError, ResourceCreationError
from sandboxrt.models import IsolationReport, Limits
from sandboxrt.room import Room
from sandboxrt.threads import run_blocking

__all__ = ["FIRST_SUBORDINATE_ID", "LAUNCH_SOURCE", "HostProbe", "find_runtime", "probe_host", "write_own_maps"]

T = TypeVar("T")

LAUNCH_SOURCE = Path(_launch_package).with_name("launch.c")
"""The program that prepares mounts for the runtime."""

_TOOL_TIMEOUT_S = 10.0
_CLEANUP_TIMEOUT_S = 10.0
_MAX_OUTPUT_BYTES = 4000
_SANDBOX_IDS = 65_536
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_SUBID_FILES = (Path("/etc/subuid"), Path("/etc/subgid"))
_FIRST_SLOT = 900
FIRST_SUBORDINATE_ID = 1
"""In an unprivileged user's outer namespace 0 is the user and 1..65536 are its subordinate ids. Containers get the
latter: their root is then not even the user, and their ids are one range, which the kernel asks of a nested map."""

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
    if fresh or key not in _known:
        _known[key] = await _probe(runtime, state_dir)
    return _known[key]


async def _probe(runtime: str, state_dir: Path) -> HostProbe:
    found = await find_runtime(runtime)
    try:
        launcher = await build_tool(LAUNCH_SOURCE, state_dir / "tools")
    except EngineUnavailableError as error:
        facts = _nothing_works(found, str(error))
    else:
        is_root = _is_root()
        hierarchy = attrs.evolve(await _in_thread(this_host), nested=not is_root)
        async with _scratch_folder(state_dir) as folder:
            facts = await _Prober(found, launcher, folder, is_root, hierarchy).facts()
    return HostProbe(isolation_report(facts), facts)


async def find_runtime(name: str) -> RuntimeFacts:
    """Where the runtime is and which version it has. It may be given as a path."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SBIN}")
    if path is None:
        return RuntimeFacts(name=name, path=None)
    done = await _in_thread(lambda: _run([path, "--version"]))
    match = re.search(r"version[ :]+(\S+)", done.detail)
    return RuntimeFacts(name=name, path=path, version=match[1] if match else "")


def _run(command: list[str], text: str = "", fds: tuple[int, ...] = ()) -> Trial:
    """Run a program to its end; its output, standard error last, is the detail."""
    try:
        done = subprocess.run(
            command,
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TOOL_TIMEOUT_S,
            pass_fds=fds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Trial(False, str(error))
    return Trial(done.returncode == 0, done.stdout[-_MAX_OUTPUT_BYTES:].decode(errors="replace").strip())


@contextlib.asynccontextmanager
async def _scratch_folder(state_dir: Path) -> AsyncIterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir=state_dir))
    try:
        yield folder
    finally:
        with trio.CancelScope(shield=True):
            await remove_tree(folder)


def _nothing_works(runtime: RuntimeFacts, reason: str) -> HostFacts:
    no = Trial(False, reason)
    return HostFacts(
        runtime=runtime,
        is_root=_is_root(),
        user=_user_name() or str(os.geteuid()),
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


def _user_name() -> str | None:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


@attrs.define
class _Prober:
    """Tries everything in one scratch folder."""

    runtime: RuntimeFacts
    launcher: Path
    folder: Path
    is_root: bool
    hierarchy: Hierarchy

    async def facts(self) -> HostFacts:
        userns_fd, userns = await self._userns()
        try:
            trials = await self._mount_trials(userns_fd, userns)
            container, cgroups, hide_unified = await self._containers(userns)
        finally:
            if userns_fd is not None:
                os.close(userns_fd)
        ranges = [each for path in _SUBID_FILES for each in read_subids(path)]
        return HostFacts(
            runtime=self.runtime,
            is_root=self.is_root,
            user=_user_name() or str(os.geteuid()),
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
            return await namespaces.open_with(write_own_maps), Trial(True)
        except (OSError, subprocess.SubprocessError) as error:
            return None, Trial(False, f"no user namespace with {_SANDBOX_IDS} ids: {error}")

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
        return await _in_thread(lambda: _run([str(self.launcher)], text, fds))

    async def _launch_in_userns(self, words: list[str], *fds: int) -> Trial:
        """The same, first into a user and mount namespace with an unprivileged user's own maps."""
        text = "".join(f"{word}\0" for word in words)
        return await _in_thread(lambda: _run_in_userns(self.launcher, text, fds))

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
        return Trial(_ALIVE in done.detail, _reason(done.detail))

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
            id_map=(self.container_root, _SANDBOX_IDS),
            cgroup_path=cgroup_path,
            limits=self._limits if cgroup_path is not None else Limits(),
            swap_limit=False,
            max_open_files=min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        )


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


def _reason(output: str) -> str:
    """The last lines that a tool printed, as one."""
    return "; ".join(line.strip() for line in output.splitlines()[-3:] if line.strip())[:500]


def _own_range(path: Path) -> SubidRange:
    ranges = subid_ranges_of(read_subids(path), _user_name(), os.geteuid())
    for each in ranges:
        if each.count >= _SANDBOX_IDS:
            return each
    raise PermissionError(f"{path} has no range of {_SANDBOX_IDS} ids for {_user_name() or os.geteuid()}")


def write_own_maps(pid: int) -> None:
    """Map an unprivileged user's own ids and its subordinate ones into a new user namespace, by the setuid helpers."""
    own = {
        "newuidmap": (os.geteuid(), _own_range(_SUBID_FILES[0])),
        "newgidmap": (os.getegid(), _own_range(_SUBID_FILES[1])),
    }
    for helper, (identity, extra) in own.items():
        program = shutil.which(helper)
        if program is None:
            raise FileNotFoundError(f"newuidmap and newgidmap are missing ({helper})")
        done = _run([program, str(pid), "0", str(identity), "1", "1", str(extra.first), str(extra.count)])
        if not done.ok:
            raise PermissionError(f"{helper}: {_reason(done.detail)}")


def _run_in_userns(launcher: Path, text: str, fds: tuple[int, ...]) -> Trial:
    """Start the launcher in a user namespace of its own, write the maps when it asks for them, wait for its end."""
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as output:
        words = f"userns\0{theirs.fileno()}\0{text}"
        child = subprocess.Popen(
            [str(launcher)], stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(theirs.fileno(), *fds)
        )
        try:
            theirs.close()
            ours.settimeout(_TOOL_TIMEOUT_S)
            assert child.stdin is not None
            with child.stdin:
                child.stdin.write(words.encode())
            if ours.recv(1) == b"u":
                write_own_maps(child.pid)
                ours.send(b"m")
            code = child.wait(_TOOL_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            return Trial(False, str(error))
        finally:
            child.kill()
            child.wait()
        output.seek(0)
        return Trial(code == 0, output.read(_MAX_OUTPUT_BYTES).decode(errors="replace").strip())
