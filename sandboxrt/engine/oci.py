"""The engine on an OCI runtime: the launcher mounts, ``crun`` or ``runc`` contains, the init takes orders.

One program is started for each container: the launcher, which mounts in a namespace of its own and then becomes the
runtime. What a container consists of on the host is named after its id (control groups, the runtime's record) or lies
in its state folder (disk image, bundle), so that :meth:`OciEngine.discard` finds everything of an owner that died.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import resource
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import trio

from sandboxrt.engine.base import (
    ContainerSpec,
    Feature,
    Identity,
    OpenFile,
    Process,
    ProcessSpec,
)
from sandboxrt.engine.bundle import INIT_PATH, BundlePlan, bundle_config
from sandboxrt.engine.cgroup_events import CgroupEvents
from sandboxrt.engine.cgroups import SandboxCgroups
from sandboxrt.engine.disk import DiskTemplates, detach_loops_below, ensure_clean
from sandboxrt.engine.idmap import UID_BLOCK_SIZE, UsernsFds
from sandboxrt.engine.init import INIT_SOURCE, IdMap, InitChannel, build_tool
from sandboxrt.engine.probe import LAUNCH_SOURCE, HostProbe, probe_host
from sandboxrt.engine.remove_tree import remove_tree
from sandboxrt.errors import EngineUnavailableError, IsolationError, ResourceCreationError
from sandboxrt.models import Isolation, IsolationReport, Limits

__all__ = ["OciContainer", "OciEngine"]

_CONTROL, _INSTRUCTIONS = 3, 0
_FIRST_SLOT = 20
_COVERS = ("/mnt", "/media", "/srv", "/opt")
_MAX_OPEN_FILES = 20_000
_OOM_SCORE_ADJ = 500
"""Commands go before the init, and before the host's own programs, when memory is short."""
_READY_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 10.0
_CONCURRENT_STARTS = 6
_MAX_OUTPUT_BYTES = 4096
_LIMIT_PROPERTIES: tuple[tuple[str, Isolation], ...] = (
    ("vcpus", Isolation.CPU_LIMIT),
    ("mem_bytes", Isolation.MEMORY_LIMIT),
    ("pids", Isolation.PIDS_LIMIT),
    ("disk_bytes", Isolation.DISK_LIMIT),
    ("inotify_instances", Isolation.INOTIFY_LIMIT),
)


@attrs.define(eq=False)
class OciContainer:
    """A running container: its init's channel and its control groups. Made by :class:`OciEngine`."""

    id: str
    report: IsolationReport
    _engine: OciEngine
    _channel: InitChannel
    _cgroups: SandboxCgroups | None
    _state_dir: Path
    _closing: trio.Lock = attrs.field(factory=trio.Lock)
    _closed: bool = False

    @property
    def features(self) -> frozenset[Feature]:
        """Everything, but what needs control groups where there are none."""
        always = {Feature.OWN_PTY, Feature.PORTS}
        grouped = {Feature.TREE_KILL, Feature.FREEZE}
        has_tree = self._cgroups is not None and self._cgroups.tree_folder is not None
        return frozenset(always | grouped if has_tree else always)

    async def spawn(self, spec: ProcessSpec) -> Process:
        """See :class:`~sandboxrt.engine.base.Container`."""
        return await self._channel.spawn(spec, None if self._cgroups is None else self._cgroups.command_group())

    async def open_file(self, path: str, identity: Identity) -> OpenFile:
        """See :class:`~sandboxrt.engine.base.Container`."""
        return await self._channel.open_file(path, identity)

    async def replace_file(self, path: str, content: AsyncIterator[bytes], identity: Identity) -> None:
        """See :class:`~sandboxrt.engine.base.Container`."""
        await self._channel.replace_file(path, content, identity)

    async def connect(self, port: int) -> trio.SocketStream:
        """See :class:`~sandboxrt.engine.base.Container`."""
        return await self._channel.connect(port)

    async def oom_kills(self) -> int:
        """See :class:`~sandboxrt.engine.base.Container`."""
        await trio.lowlevel.checkpoint()
        return 0 if self._cgroups is None else self._cgroups.oom_kills()

    async def wait_dead(self) -> str:
        """See :class:`~sandboxrt.engine.base.Container`."""
        return await self._channel.wait_dead()

    async def close(self) -> None:
        """See :class:`~sandboxrt.engine.base.Container`."""
        with trio.CancelScope(shield=True):
            async with self._closing:
                if not self._closed:
                    self._channel.close()
                    await self._channel.aclose()
                    await self._engine.remove(self.id, self._cgroups, self._state_dir)
                    self._closed = True


@attrs.define(eq=False)
class OciEngine:
    """Makes containers with an OCI runtime. Entered before use; leaving it ends the channels of its containers.

    Attributes:
        state_dir: The host's state folder; templates, compiled programs and the runtime's records are kept there.
        runtime: Name or path: ``crun``, ``runc``.
    """

    state_dir: Path
    runtime: str = "crun"
    _stack: contextlib.AsyncExitStack = attrs.field(factory=contextlib.AsyncExitStack, init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _events: CgroupEvents | None = attrs.field(default=None, init=False)
    _starts: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(_CONCURRENT_STARTS), init=False)
    _threads: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(_CONCURRENT_STARTS), init=False)

    async def __aenter__(self) -> OciEngine:
        async with contextlib.AsyncExitStack() as stack:
            self._nursery = await stack.enter_async_context(trio.open_nursery())
            self._events = await stack.enter_async_context(CgroupEvents.open())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        await self._stack.aclose()

    async def report(self) -> IsolationReport:
        """See :class:`~sandboxrt.engine.base.Engine`."""
        probe = await self._probe()
        _require_runtime(probe)
        return probe.report

    async def create(self, spec: ContainerSpec) -> OciContainer:
        """See :class:`~sandboxrt.engine.base.Engine`."""
        probe = await self._probe()
        _require_runtime(probe)
        _require(spec, probe.report)
        cgroups = SandboxCgroups(probe.facts.hierarchy, spec.id, self._events) if probe.facts.cgroups.ok else None
        async with self._starts:
            try:
                channel = await self._start(spec, probe, cgroups)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self.remove(spec.id, cgroups, spec.state_dir)
                raise
        return OciContainer(spec.id, probe.report, self, channel, cgroups, spec.state_dir)

    async def discard(self, state_dir: Path) -> None:
        """See :class:`~sandboxrt.engine.base.Engine`."""
        probe = await self._probe()
        cgroups = SandboxCgroups(probe.facts.hierarchy, state_dir.name, self._events)
        with trio.CancelScope(shield=True):
            await self.remove(state_dir.name, cgroups, state_dir)
            await remove_tree(state_dir)

    async def remove(self, container_id: str, cgroups: SandboxCgroups | None, state_dir: Path) -> None:
        """Free what a container has on the host, except its state folder. Bounded; may raise ``RuntimeError``."""
        left: list[str] = []

        async def attempt(what: str, work: Callable[[], Awaitable[object]]) -> None:
            try:
                with trio.fail_after(_CLOSE_TIMEOUT_S):
                    await work()
            except (OSError, trio.TooSlowError, RuntimeError) as error:
                left.append(f"{what}: {error!r}")

        if cgroups is not None:
            await attempt("processes", cgroups.kill_all)
            await attempt("processes", cgroups.wait_empty)
        await attempt("the runtime's record", functools.partial(self._forget, container_id))
        if cgroups is not None:
            await attempt("control groups", cgroups.remove)
        await attempt("loop devices", functools.partial(_wait_detached, state_dir))
        if left:
            raise RuntimeError(f"container {container_id} could not be freed in time: {'; '.join(left)}")

    # -- starting ----------------------------------------------------------------------------------------------------

    async def _probe(self) -> HostProbe:
        return await probe_host(self.runtime, self.state_dir)

    async def _start(self, spec: ContainerSpec, probe: HostProbe, cgroups: SandboxCgroups | None) -> InitChannel:
        launcher = await build_tool(LAUNCH_SOURCE, self.state_dir / "tools")
        init = await build_tool(INIT_SOURCE, self.state_dir / "tools")
        if cgroups is not None:
            await cgroups.prepare()
        image = await self._disk(spec)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as stack:
            stack.callback(theirs.close)
            failed = stack.enter_context(contextlib.ExitStack())
            failed.callback(ours.close)
            fds = {"init": _opened(stack, init, os.O_RDONLY)}
            if image is not None:
                fds["disk"] = _opened(stack, image, os.O_RDWR)
            fds["userns"] = await UsernsFds(launcher).open(spec.uid_base)
            stack.callback(os.close, fds["userns"])
            plan = _Plan(spec, probe, cgroups, fds, self._runtime_root())
            work = functools.partial(_launch, launcher, plan, theirs.fileno())
            await trio.to_thread.run_sync(work, limiter=self._threads)
            theirs.close()
            failed.pop_all()
        return await self._adopt(ours, spec)

    async def _disk(self, spec: ContainerSpec) -> Path | None:
        if spec.limits.disk_bytes is None:
            return None
        image = spec.state_dir / "disk.img"
        if await trio.Path(image).exists():
            await ensure_clean(image)
        else:
            await DiskTemplates(self.state_dir / "templates").clone(spec.limits.disk_bytes, image)
        return image

    async def _adopt(self, control: socket.socket, spec: ContainerSpec) -> InitChannel:
        """Serve the init's socket, and return when the init is ready for orders."""
        assert self._nursery is not None
        channel = InitChannel(control, IdMap.block(spec.uid_base), oom_score_adj=_OOM_SCORE_ADJ)
        try:
            with trio.fail_after(_READY_TIMEOUT_S):
                await self._nursery.start(channel.serve)
        except (RuntimeError, trio.TooSlowError) as error:
            await channel.aclose()
            reason = await channel.wait_dead() if channel.is_dead else str(error)
            raise ResourceCreationError(f"the sandbox's first process did not start: {reason}", "sandbox") from error
        except BaseException:
            with trio.CancelScope(shield=True):
                await channel.aclose()
            raise
        return channel

    def _runtime_root(self) -> Path:
        return self.state_dir / "runtime" / Path(self.runtime).name

    async def _forget(self, container_id: str) -> None:
        """Have the runtime remove its own record, once the container's processes are gone."""
        await trio.to_thread.run_sync(shutil.rmtree, self._runtime_root() / container_id, True, limiter=self._threads)


def _opened(stack: contextlib.ExitStack, path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _require_runtime(probe: HostProbe) -> None:
    runtime = probe.facts.runtime
    if runtime.path is None:
        raise EngineUnavailableError(
            f"the OCI runtime {runtime.name!r} is not installed; install it (Debian: `sudo apt-get install crun`) "
            "or name another one with runtime="
        )


def _require(spec: ContainerSpec, report: IsolationReport) -> None:
    """Refuse what this host cannot give."""
    missing = [prop.value for prop in report.missing(spec.require)]
    unenforced = [
        prop.value
        for name, prop in _LIMIT_PROPERTIES
        if getattr(spec.limits, name) is not None and not report.has(prop) and not spec.allow_unenforced_limits
    ]
    if missing:
        raise IsolationError(
            f"this host does not provide {', '.join(missing)}; `sandboxrt doctor` says why and how to get it, "
            "and require= says what you can do without",
            missing,
        )
    if unenforced:
        raise IsolationError(
            f"this host cannot enforce {', '.join(unenforced)}; `sandboxrt doctor` says how to change that, "
            "allow_unenforced_limits=True accepts it",
            unenforced,
        )


@attrs.frozen
class _Plan:
    """One container, on the way from its spec to the launcher's instructions."""

    spec: ContainerSpec
    probe: HostProbe
    cgroups: SandboxCgroups | None
    fds: dict[str, int]
    """``init``, ``userns`` and, where there is one, ``disk``: descriptors of ours."""
    runtime_root: Path

    @property
    def pid_file(self) -> Path:
        """Where the runtime writes the first process's id."""
        return self.spec.state_dir / "bundle" / "pid"

    @property
    def cover(self) -> str:
        """A folder that can be covered: nothing that the runtime or the layers need lies below it."""
        needed = [self.spec.state_dir, self.runtime_root, *(layer.path for layer in self.spec.layers)]
        for cover in _COVERS:
            if Path(cover).is_dir() and not any(path.resolve().is_relative_to(cover) for path in needed):
                return cover
        raise EngineUnavailableError(f"one of {', '.join(_COVERS)} must exist and not hold the state folder")

    def bundle(self) -> dict[str, Any]:
        """The runtime's configuration."""
        controllers = self.probe.facts.hierarchy.controllers if self.cgroups is not None else frozenset()
        limits = self.spec.limits
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return bundle_config(
            BundlePlan(
                hostname=self.spec.hostname,
                rootfs=f"{self.cover}/root",
                tmp_source=f"{self.cover}/disk/tmp",
                init_source=f"{self.cover}/init",
                init_argv=(INIT_PATH,),
                id_map=(self.spec.uid_base, UID_BLOCK_SIZE),
                cgroup_path=None if self.cgroups is None else self.cgroups.cgroups_path,
                limits=Limits(
                    mem_bytes=limits.mem_bytes if "memory" in controllers else None,
                    pids=limits.pids if "pids" in controllers else None,
                    vcpus=limits.vcpus if "cpu" in controllers else None,
                ),
                swap_limit=self.probe.facts.swap_limit,
                max_open_files=_MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(_MAX_OPEN_FILES, hard),
            )
        )

    def words(self, fds: dict[str, int]) -> list[str]:
        """The launcher's instructions, with descriptors as the launcher knows them."""
        base = str(self.spec.uid_base)
        words = ["ns"]
        slot = _FIRST_SLOT
        stacks: dict[str, list[int]] = {}
        for layer in self.spec.layers:
            words += ["clone", str(slot), str(layer.path), "idmap", str(slot), str(fds["userns"])]
            stacks.setdefault(layer.at, []).append(slot)
            slot += 1
        if "disk" not in fds:
            words += ["dir", str(self.spec.state_dir / "files"), "755", "0"]
            words += ["open", str(slot), str(self.spec.state_dir / "files")]
        words += ["cover", self.cover, "dir", "root", "755", base, "dir", "disk", "755", "0"]
        words += ["copy", "init", "755", str(fds["init"])]
        words += ["disk", "disk", str(fds["disk"])] if "disk" in fds else ["bind", "disk", str(slot)]
        words += ["dir", "disk/tmp", "1777", base]
        for number, at in enumerate(sorted(stacks, key=lambda at: at != "/")):
            upper, work = f"disk/upper{number}", f"disk/work{number}"
            lower = ":".join(f"/proc/self/fd/{fd}" for fd in stacks[at])
            options = f"lowerdir={lower},upperdir={upper},workdir={work},index=off,redirect_dir=off,metacopy=off"
            words += ["dir", upper, "755", base, "dir", work, "755", base]
            words += ["overlay", f"root{'' if at == '/' else at}", options]
        return words + self._runtime_words()

    def _runtime_words(self) -> list[str]:
        facts = self.probe.facts
        words: list[str] = []
        if self.cgroups is not None:
            for path in self.cgroups.join_paths:
                words += ["put", str(path), "0"]
        if facts.hide_unified and facts.hierarchy.unified is not None:
            words += ["hide", str(facts.hierarchy.unified)]
        assert facts.runtime.path is not None
        manager = ["--cgroup-manager=disabled"] if facts.runtime.kind == "crun" and self.cgroups is None else []
        start = ["run", "--detach", "--preserve-fds", "1", "--pid-file", str(self.pid_file)]
        start += ["--bundle", str(self.spec.state_dir / "bundle")]
        return [*words, "exec", facts.runtime.path, *manager, "--root", str(self.runtime_root), *start, self.spec.id]


def _launch(launcher: Path, plan: _Plan, control: int) -> None:
    """Write the bundle, run the launcher to its end, and raise what it says. In a worker thread."""
    bundle = plan.spec.state_dir / "bundle"
    bundle.mkdir(exist_ok=True)
    (bundle / "config.json").write_text(json.dumps(plan.bundle()))
    plan.runtime_root.mkdir(parents=True, exist_ok=True)
    theirs = {name: 4 + number for number, name in enumerate(sorted(plan.fds))}
    fds = [(control, _CONTROL), *((plan.fds[name], number) for name, number in theirs.items())]
    _instruct(launcher, plan, plan.words(theirs), fds)
    if plan.spec.limits.inotify_instances is not None:
        _limit_inotify(launcher, plan, plan.spec.limits.inotify_instances)


def _limit_inotify(launcher: Path, plan: _Plan, instances: int) -> None:
    """Set the limit from inside of the container's user namespace, which it belongs to; the runtime cannot."""
    pid = int(plan.pid_file.read_text())
    with contextlib.ExitStack() as stack:
        namespace = _opened(stack, Path(f"/proc/{pid}/ns/user"), os.O_RDONLY)
        words = ["enter", "4", "put", "/proc/sys/user/max_inotify_instances", str(instances)]
        _instruct(launcher, plan, words, [(namespace, 4)])


def _instruct(launcher: Path, plan: _Plan, words: list[str], fds: list[tuple[int, int]]) -> None:
    """Run the launcher with instructions; ``fds`` pairs descriptors of ours with their numbers there."""
    with contextlib.ExitStack() as stack:
        instructions, output = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("instructions", "output"))
        stack.callback(os.close, instructions)
        stack.callback(os.close, output)
        os.write(instructions, "".join(f"{word}\0" for word in words).encode())
        os.lseek(instructions, 0, os.SEEK_SET)
        pairs = [(instructions, _INSTRUCTIONS), (output, 1), (output, 2), *fds]
        # Descriptors are moved out of the way first, so that no target number is a source that is still needed.
        high = [(os.dup(fd), number) for fd, number in _above(pairs, stack)]
        for fd, _ in high:
            stack.callback(os.close, fd)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in high]
        pid = os.posix_spawn(launcher, ["launch"], {"PATH": os.defpath}, file_actions=actions)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != 0:
            said = os.pread(output, _MAX_OUTPUT_BYTES, 0).decode(errors="replace")
            raise _start_error(plan, said, code)


def _above(pairs: list[tuple[int, int]], stack: contextlib.ExitStack) -> list[tuple[int, int]]:
    """The same pairs, while every number that is a target is taken, so that copies get higher ones."""
    for number in range(max(target for _, target in pairs) + 1):
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, null)
    return pairs


def _start_error(plan: _Plan, said: str, code: int) -> ResourceCreationError:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("loop ")]
    reason = "; ".join(lines[-3:]) or f"exit code {code}"
    runtime = plan.probe.facts.runtime.label
    return ResourceCreationError(f"{runtime} could not start the sandbox: {reason}", "sandbox", "SandboxConfig")


async def _wait_detached(state_dir: Path) -> None:
    """Wait until no loop device holds the disk: it frees itself when the last mount of the container is gone."""
    if not await trio.Path(state_dir / "disk.img").exists():
        return
    pause_s = 0.001
    while await trio.to_thread.run_sync(_is_attached, state_dir / "disk.img"):
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.1)
        if pause_s == 0.1:
            await detach_loops_below(state_dir)


def _is_attached(image: Path) -> bool:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().strip().removesuffix(" (deleted)") == str(image):
                return True
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
                raise
    return False
