"""The engine on an OCI runtime: the launcher mounts, ``crun`` or ``runc`` contains, the init takes orders.

One program is started for each container: the launcher, which mounts in a namespace of its own and then becomes the
runtime. What a container has on the host lies in its state folder (disk image or files, the runtime's record in a
folder named after the container) or is named after its id (control groups), so that :meth:`OciEngine.discard` finds
everything of an owner that died.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import shutil
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from sandboxrt.actors import RestartPolicy, supervise
from sandboxrt.engine.base import (
    Captured,
    ContainerSpec,
    Feature,
    Identity,
    OpenFile,
    Process,
    ProcessSpec,
)
from sandboxrt.engine.capture import DISK_IMAGE, capture_running, capture_stopped
from sandboxrt.engine.causes import explain
from sandboxrt.engine.cgroup_events import CgroupEvents
from sandboxrt.engine.cgroups import SandboxCgroups
from sandboxrt.engine.copy.copier import Copier, Freezer
from sandboxrt.engine.damage import ensure_clean
from sandboxrt.engine.disk import DiskTemplates
from sandboxrt.engine.ext4 import can_keep_back
from sandboxrt.engine.findings import GUEST_KERNEL_RUNTIMES
from sandboxrt.engine.holdings import Holdings, holdings_of, records_of
from sandboxrt.engine.idmap import read_subids, subid_ranges_of
from sandboxrt.engine.init import INIT_SOURCE, IdMap, InitChannel, build_tool
from sandboxrt.engine.launch.plan import (
    CONTROL_FD,
    DATA_FOLDER,
    DISK_FD,
    INIT_FD,
    MAPS_FD,
    LaunchPlan,
    covered_folder,
)
from sandboxrt.engine.launch.program import Finished, run_launcher
from sandboxrt.engine.launch.words import how_it_ended, meaning
from sandboxrt.engine.ledger import DiskLedger
from sandboxrt.engine.loops import detach_loops_below
from sandboxrt.engine.own_userns import reason as last_words
from sandboxrt.engine.own_userns import write_own_maps
from sandboxrt.engine.owners.mover import move_owners
from sandboxrt.engine.probe import LAUNCH_SOURCE, LOOP_LINE, HostProbe, probe_host
from sandboxrt.engine.remains import record_folder, record_groups
from sandboxrt.engine.remove_tree import remove_tree
from sandboxrt.engine.requirements import require_container, require_isolation, require_runtime
from sandboxrt.engine.runtime_exec import STDIO_FD, ExecChannel, ExecStrategy, RuntimeExec
from sandboxrt.engine.runtime_exec.strategy import choose_strategy, relay_process
from sandboxrt.errors import ResourceCreationError
from sandboxrt.models import IsolationReport
from sandboxrt.room import Room

__all__ = ["OciContainer", "OciEngine"]

_log = logging.getLogger("sandboxrt.engine")

_OOM_SCORE_ADJ = 500
"""Commands go before the init, and before the host's own programs, when memory is short."""
_LAUNCH_TIMEOUT_S = 20.0
_READY_TIMEOUT_S = 10.0
_REMOVE_TIMEOUT_S = 60.0
_CONCURRENT_STARTS = 6
_LEDGER = RestartPolicy(max_restarts=100, within_s=60.0)


def _ledger_failed(error: Exception) -> None:
    _log.error("nobody watches the disks of this host's sandboxes any more", exc_info=error)


@attrs.define(eq=False)
class OciContainer:
    """A running container: its init's channel and its control groups. Made by :class:`OciEngine`."""

    id: str
    report: IsolationReport
    _channel: InitChannel | ExecChannel
    _remains: Holdings
    _has_guest_kernel: bool
    _spec: ContainerSpec
    _copier: Copier
    _closing: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __repr__(self) -> str:
        return f"<OciContainer {self.id} {'closed' if self._closed else self._channel}>"

    @property
    def features(self) -> frozenset[Feature]:
        """Everything, but what needs control groups where there are none, and what a guest kernel lacks."""
        always = {Feature.OWN_PTY, Feature.PORTS}
        if not self._has_guest_kernel:
            always.add(Feature.TERMINAL_EOF)
        grouped = {Feature.TREE_KILL, Feature.FREEZE}
        cgroups = self._remains.cgroups
        has_tree = not self._has_guest_kernel and cgroups is not None and cgroups.tree_folder is not None
        return frozenset(always | grouped if has_tree else always)

    @property
    def cgroups(self) -> SandboxCgroups | None:
        """Its control groups, for what counts and freezes."""
        return self._remains.cgroups

    async def spawn(self, spec: ProcessSpec) -> Process:
        """See :class:`~sandboxrt.engine.base.Container`."""
        # The host cannot move processes that are another kernel's.
        cgroups = None if self._has_guest_kernel else self._remains.cgroups
        return await self._channel.spawn(spec, None if cgroups is None else cgroups.command_group())

    async def open_file(self, path: str, identity: Identity) -> OpenFile:
        """See :class:`~sandboxrt.engine.base.Container`."""
        return await self._channel.open_file(path, identity)

    async def replace_file(self, path: str, content: AsyncIterator[bytes], identity: Identity) -> None:
        """See :class:`~sandboxrt.engine.base.Container`."""
        await self._channel.replace_file(path, content, identity)

    async def connect(self, port: int) -> trio.SocketStream:
        """See :class:`~sandboxrt.engine.base.Container`."""
        return await self._channel.connect(port)

    async def capture(self, target: Path, *, reserve_bytes: int = 0) -> Captured:
        """See :class:`~sandboxrt.engine.base.Container`."""
        cgroups = self._remains.cgroups
        if Feature.FREEZE not in self.features or cgroups is None:
            raise ResourceCreationError("what runs here cannot be frozen", "snapshot", "Capture")
        file, text = cgroups.thawing
        return await capture_running(
            self._copier,
            self._spec.state_dir,
            first_id=self._spec.uid_base if self._copier.is_root else None,
            loop=self._remains.loop if self._remains.image is not None else None,
            freezer=Freezer(cgroups.freeze, cgroups.thaw, file, text),
            target=target,
            reserve_bytes=reserve_bytes,
        )

    async def oom_kills(self) -> int:
        """See :class:`~sandboxrt.engine.base.Container`."""
        await trio.lowlevel.checkpoint()
        return 0 if self._remains.cgroups is None else self._remains.cgroups.oom_kills()

    async def wait_dead(self) -> str:
        """See :class:`~sandboxrt.engine.base.Container`."""
        return await self._channel.wait_dead()

    async def close(self) -> None:
        """See :class:`~sandboxrt.engine.base.Container`."""
        with trio.CancelScope(shield=True):
            async with self._closing:
                if not self._closed:
                    self._channel.close()
                    await self._remains.free()
                    self._closed = True


def _absolute(path: Path) -> Path:
    """What the engine starts is started from elsewhere."""
    return path.absolute()


@attrs.frozen
class _Tools:
    launcher: Path
    init: Path


@attrs.define(eq=False)
class OciEngine:
    """Makes containers with an OCI runtime. Entered before use; leaving it ends its containers.

    Attributes:
        state_dir: The host's state folder; templates and compiled programs are kept there.
        runtime: Name or path: ``crun``, ``runc``, ``runsc``.
        strategy: How commands get into containers; what fits the runtime where left out.
        room: The room for the state folder, and how much of it is kept.
    """

    state_dir: Path = attrs.field(converter=_absolute)
    runtime: str = "crun"
    strategy: ExecStrategy | None = None
    room: Room = attrs.field(default=attrs.Factory(lambda self: Room(self.state_dir), takes_self=True), kw_only=True)
    _stack: contextlib.AsyncExitStack = attrs.field(factory=contextlib.AsyncExitStack, init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _events: CgroupEvents | None = attrs.field(default=None, init=False)
    _starts: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(_CONCURRENT_STARTS), init=False)
    _disks: DiskTemplates | None = attrs.field(default=None, init=False)
    _tools: _Tools | None = attrs.field(default=None, init=False)
    _probing: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _ledger: DiskLedger = attrs.field(
        default=attrs.Factory(lambda self: DiskLedger(self.state_dir, self.room), takes_self=True), init=False
    )

    async def __aenter__(self) -> OciEngine:
        async with contextlib.AsyncExitStack() as stack:
            self._nursery = await stack.enter_async_context(trio.open_nursery())
            self._events = await stack.enter_async_context(CgroupEvents.open())
            self._nursery.start_soon(supervise, self._ledger.run, _ledger_failed, _LEDGER)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        await self._stack.aclose()

    async def report(self) -> IsolationReport:
        """See :class:`~sandboxrt.engine.base.Engine`."""
        probe = await self._probe()
        require_runtime(probe.facts.runtime)
        choose_strategy(self.strategy, probe.facts)
        require_container(probe.report, probe.facts)
        return probe.report

    async def create(self, spec: ContainerSpec) -> OciContainer:
        """See :class:`~sandboxrt.engine.base.Engine`."""
        probe = await self._probe()
        require_runtime(probe.facts.runtime)
        strategy = choose_strategy(self.strategy, probe.facts)
        require_isolation(spec, probe.report)
        cgroups = SandboxCgroups(probe.facts.hierarchy, spec.id, self._events) if probe.facts.cgroups.ok else None
        remains = Holdings(spec.id, record_folder(spec.state_dir, spec.id), cgroups)
        async with self._starts:
            try:
                channel = await self._start(spec, probe, remains, strategy)
                await self._enter_disk(remains)
            except BaseException:
                await remains.free()
                raise
        has_guest_kernel = probe.facts.runtime.kind in GUEST_KERNEL_RUNTIMES
        copier = Copier(self.state_dir / "tools", probe.facts.is_root)
        return OciContainer(spec.id, probe.report, channel, remains, has_guest_kernel, spec, copier)

    async def capture(self, state_dir: Path, uid_base: int, target: Path, *, reserve_bytes: int = 0) -> Captured:
        """See :class:`~sandboxrt.engine.base.Engine`."""
        is_root = (await self._probe()).facts.is_root
        return await capture_stopped(
            Copier(self.state_dir / "tools", is_root),
            state_dir,
            first_id=uid_base if is_root else None,
            target=target,
            reserve_bytes=reserve_bytes,
        )

    async def move_owners(self, state_dir: Path, old_base: int, new_base: int) -> None:
        """See :class:`~sandboxrt.engine.base.Engine`."""
        if (await self._probe()).facts.is_root:
            await move_owners((await self._built_tools()).launcher, state_dir, old_base, new_base)

    async def release(self, state_dir: Path, container_id: str) -> None:
        """See :class:`~sandboxrt.engine.base.Engine`."""
        probe = await self._probe()
        with trio.CancelScope(shield=True):
            for record in records_of(state_dir):
                remains = holdings_of(record, container_id, probe.facts.hierarchy, self._events)
                await remains.free()
                # Without its number all devices of the machine must be looked at: the launcher did not come so far, or
                # an older version's did.
                if remains.image is not None and remains.loop is None:
                    await detach_loops_below(state_dir)

    async def discard(self, state_dir: Path, container_id: str) -> None:
        """See :class:`~sandboxrt.engine.base.Engine`."""
        probe = await self._probe()
        with trio.CancelScope(shield=True):
            await self.release(state_dir, container_id)
            # Without a user namespace nothing of other ids can have come to be there.
            if not probe.facts.is_root and probe.facts.userns.ok and (state_dir / DATA_FOLDER).exists():
                await self._remove_others_files(state_dir / DATA_FOLDER)
            await remove_tree(state_dir)

    async def _remove_others_files(self, folder: Path) -> None:
        """Remove what belongs to subordinate ids, for whom only their namespace can act."""
        rm = shutil.which("rm") or "/bin/rm"
        words = ["userns", str(MAPS_FD), "exec", rm, "-rf", "--one-file-system", "--", str(folder)]
        done = await _launch_in_userns((await self._built_tools()).launcher, words, {}, _REMOVE_TIMEOUT_S)
        if done.code:
            raise OSError(errno.EACCES, done.output.strip() or "its files could not be removed", str(folder))

    # -- starting ----------------------------------------------------------------------------------------------------

    async def _probe(self) -> HostProbe:
        # A host is tried out once, however many are made at the same time.
        async with self._probing:
            return await probe_host(self.runtime, self.state_dir)

    async def _built_tools(self) -> _Tools:
        if self._tools is None:
            folder = self.state_dir / "tools"
            self._tools = _Tools(await build_tool(LAUNCH_SOURCE, folder), await build_tool(INIT_SOURCE, folder))
        return self._tools

    async def _start(
        self, spec: ContainerSpec, probe: HostProbe, remains: Holdings, strategy: ExecStrategy
    ) -> InitChannel | ExecChannel:
        tools = await self._built_tools()
        # The record's folder comes first: its name is what discard finds everything else by.
        remains.record.mkdir(mode=0o700, exist_ok=True)
        if remains.cgroups is not None:
            record_groups(remains.record, remains.cgroups.hierarchy)
            await remains.cgroups.prepare()
        plan = LaunchPlan(
            spec=spec,
            facts=probe.facts,
            cgroups=remains.cgroups,
            cover=covered_folder([spec.state_dir, self.state_dir, *(layer.path for layer in spec.layers)]),
            record=remains.record,
            pid_file=remains.record / "pid",
            strategy=strategy,
            disk_options="" if can_keep_back() else "discard",
        )
        await self._prepare_disk(plan, remains)
        kind = socket.SOCK_SEQPACKET if plan.is_init_served else socket.SOCK_STREAM
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        try:
            with theirs:
                done = await _launch(tools, plan, theirs.fileno(), remains)
            remains.init = _init_descriptor(plan.pid_file)
            if done.code or remains.init is None:
                raise _start_error(plan, done)
            await _limit(plan)
        except BaseException:
            ours.close()
            raise
        if plan.is_init_served:
            return await self._adopt(ours, spec, probe)
        return await self._adopt_held(ours, plan, tools, remains, _id_map(spec, probe))

    async def _enter_disk(self, remains: Holdings) -> None:
        """Before anything runs on it, have the ledger say how much of its disk a container may take."""
        if remains.image is None or remains.loop is None:
            return
        cgroups = remains.cgroups if remains.cgroups is not None and remains.cgroups.tree_folder is not None else None
        account = await self._ledger.admit(
            remains.image,
            remains.loop,
            freeze=None if cgroups is None else cgroups.freeze,
            thaw=None if cgroups is None else cgroups.thaw,
        )
        remains.leave = functools.partial(self._ledger.leave, account)

    async def _prepare_disk(self, plan: LaunchPlan, remains: Holdings) -> None:
        state_dir = plan.spec.state_dir
        if not plan.has_disk:
            (state_dir / DATA_FOLDER).mkdir(mode=0o711, exist_ok=True)
            return
        assert plan.spec.limits.disk_bytes is not None
        image = state_dir / DISK_IMAGE
        if image.exists():
            await ensure_clean(image)
        else:
            if self._disks is None:
                self._disks = DiskTemplates(self.state_dir / "templates", self.room)
            await self._disks.clone(plan.spec.limits.disk_bytes, image)
        remains.image = image

    async def _adopt(self, control: socket.socket, spec: ContainerSpec, probe: HostProbe) -> InitChannel:
        """Serve the init's socket, and return when the init is ready for orders."""
        if self._nursery is None:
            control.close()
            raise RuntimeError("the engine must be entered before it is used")
        channel = InitChannel(control, _id_map(spec, probe), oom_score_adj=_OOM_SCORE_ADJ)
        try:
            with trio.fail_after(_READY_TIMEOUT_S):
                await self._nursery.start(channel.serve)
        except (RuntimeError, trio.TooSlowError) as error:
            reason = await channel.wait_dead() if channel.is_dead else "it said nothing"
            channel.close()
            raise ResourceCreationError(f"the sandbox's first process did not start: {reason}", "sandbox") from error
        except BaseException:
            channel.close()
            raise
        return channel

    async def _adopt_held(
        self, hold: socket.socket, plan: LaunchPlan, tools: _Tools, remains: Holdings, ids: IdMap
    ) -> ExecChannel:
        """Own the socket that keeps the first process waiting, and start jobs by the runtime's exec."""
        assert remains.init is not None
        try:
            process_file = remains.record / "relay.json"
            process_file.write_text(json.dumps(relay_process(_OOM_SCORE_ADJ)))
            words = plan.exec_words(STDIO_FD, process_file)
            exec_ = RuntimeExec(tools.launcher, tuple(words), detached=plan.detaches_exec)
            channel = ExecChannel(exec_, hold, os.dup(remains.init), ids)
        except BaseException:
            hold.close()
            raise
        if self._nursery is None:
            channel.close()
            raise RuntimeError("the engine must be entered before it is used")
        await self._nursery.start(channel.serve)
        return channel


async def _launch(tools: _Tools, plan: LaunchPlan, control: int, remains: Holdings) -> Finished:
    with contextlib.ExitStack() as stack:
        fds = {CONTROL_FD: control, INIT_FD: _opened(stack, tools.init, os.O_RDONLY)}
        if remains.image is not None:
            fds[DISK_FD] = _opened(stack, remains.image, os.O_RDWR)
        try:
            if plan.facts.is_root:
                done = await run_launcher(tools.launcher, plan.words(), fds, timeout_s=_LAUNCH_TIMEOUT_S)
            else:
                done = await _launch_in_userns(tools.launcher, plan.words(), fds, _LAUNCH_TIMEOUT_S)
        except OSError as error:
            raise ResourceCreationError(f"the sandbox could not be started: {error}", "sandbox") from error
    loop = LOOP_LINE.search(done.output)
    remains.loop = int(loop[1]) if loop else None
    return done


async def _limit(plan: LaunchPlan) -> None:
    """Put limits on the groups that the runtime was not told of, before anything but the first process runs."""
    if plan.cgroups is not None:
        try:
            await plan.cgroups.limit(plan.spec.limits, swap=plan.facts.swap_limit)
        except OSError as error:
            raise ResourceCreationError(f"the sandbox could not be put under its limits: {error}", "sandbox") from error


async def _launch_in_userns(launcher: Path, words: list[str], fds: Mapping[int, int], timeout_s: float) -> Finished:
    """Run instructions that begin with ``userns``: the namespace of an unprivileged user and its subordinate ids."""
    with contextlib.ExitStack() as stack:
        ours, theirs = (stack.enter_context(sock) for sock in socket.socketpair())
        maps = (ours, write_own_maps)
        return await run_launcher(launcher, words, {**fds, MAPS_FD: theirs.fileno()}, timeout_s=timeout_s, maps=maps)


def _opened(stack: contextlib.ExitStack, path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _init_descriptor(pid_file: Path) -> int | None:
    """A descriptor of the first process, by the id that the runtime wrote down a moment ago."""
    try:
        return os.pidfd_open(int(pid_file.read_text()))
    except (OSError, ValueError):
        return None


def _id_map(spec: ContainerSpec, probe: HostProbe) -> IdMap:
    if probe.facts.is_root:
        return IdMap.block(spec.uid_base)
    for each in subid_ranges_of(read_subids(Path("/etc/subuid")), probe.facts.user, os.geteuid()):
        return IdMap.block(each.first)
    return IdMap.block(0)


def _start_error(plan: LaunchPlan, done: Finished) -> ResourceCreationError:
    said = LOOP_LINE.sub("", done.output).strip()
    reason = how_it_ended(done.code, meaning(said))
    if done.timed_out:
        reason = f"it took longer than {_LAUNCH_TIMEOUT_S:.0f} s; {reason}"
    runtime = plan.facts.runtime.label
    cause = explain(said, plan.facts.around)
    why = reason if cause is None else f"{cause.what} ({last_words(said)}). What helps: {cause.fix}"
    return ResourceCreationError(f"{runtime} could not start the sandbox: {why}", "sandbox", "SandboxConfig")
