"""The sandbox actor: one container from its making to its removal, and everything that runs in it.

Its task is :meth:`Sandbox.run`, which a host owns. It makes the container, serves until the container dies or somebody
asks for its stop or deletion, makes another one when it is started again, and in the end removes all that was made,
whatever happened before. What goes wrong here ends this sandbox and
what runs in it, with errors that its users see; it never reaches a sibling.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import attrs
import trio

from sandboxrt.actors import RestartPolicy, sole_error, supervise
from sandboxrt.engine.base import (
    Captured,
    Container,
    ExecFailedError,
    Feature,
    Identity,
    Process,
    ProcessSpec,
    SpawnFailedError,
)
from sandboxrt.engine.remains import SESSIONS_FOLDER
from sandboxrt.errors import (
    HostDiskFullError,
    ResourceCreationError,
    SandboxClientError,
    SandboxNotReadyError,
    SandboxOperationError,
)
from sandboxrt.host.attachment import AnyAttachment
from sandboxrt.host.captures import Captures
from sandboxrt.host.command import Command, StartError
from sandboxrt.host.connections import Connections, PortStream
from sandboxrt.host.files import SandboxFile, open_file, read_file, resolve_path, write_file
from sandboxrt.host.launch import ImageSettings, Launcher
from sandboxrt.host.lease import Lease
from sandboxrt.host.lifetime import Ending, age_s, expiry_at_rest, next_end, stood_still
from sandboxrt.host.provision import Workshop, make_container, new_launcher, record_sandbox, sandbox_dir, secure_block
from sandboxrt.host.search import Searcher
from sandboxrt.host.sessions import SessionTable
from sandboxrt.host.spill import SpillFile, SpillQuota
from sandboxrt.host.starts import StartLog
from sandboxrt.host.stream import OutputStream
from sandboxrt.host.tunnel import Tunnel
from sandboxrt.models import IsolationReport
from sandboxrt.protocol.exec import ErrorFrame, Execute, Exit, Reconnect
from sandboxrt.protocol.output import ReplayBuffer
from sandboxrt.protocol.rest import CreateSandbox, SandboxInfo, UpdateSandbox
from sandboxrt.protocol.wording import not_ready
from sandboxrt.snapshots.content import CaptureSource
from sandboxrt.store import SandboxRow, container_id
from sandboxrt.tunnels.mux import Wire

__all__ = ["Sandbox", "SandboxStatus"]

_log = logging.getLogger("sandboxrt.host")
_commands_log = logging.getLogger("sandboxrt.host.commands")
"""What a server's operator wants to see of commands; an embedding program has it from their results."""
_GOODBYE = "kill -TERM -1 2>/dev/null; while kill -0 -1 2>/dev/null; do sleep 0.05; done"
"""As the container's root: neither its first process nor the shell itself is meant by -1. Killed with the rest."""
_SERVANT = RestartPolicy(max_restarts=3, within_s=60.0)
_LEAST_SPILL_BYTES: Final = 64 * 1024**2
_NOTE_EVERY_S: Final = 60.0
"""How often the store is told when a sandbox was last active, for the host that comes after a crash."""


class SandboxStatus(enum.Enum):
    """Where a sandbox is in its life; the values are the protocol's words."""

    PROVISIONING = "provisioning"
    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"
    DELETING = "deleting"


class _DiedError(Exception):
    """The container ended by itself."""


class Sandbox:
    """One sandbox of a host.

    Args:
        request: What its creator asked for.
        workshop: The host's.
        row: Of one that a dead host has kept: what is recorded of it. It is ``stopped``, or ``failed`` as it was.
        on_recorded: Told once it has an id, before anybody who waits for that.
    """

    def __init__(
        self,
        request: CreateSandbox,
        workshop: Workshop,
        row: SandboxRow | None = None,
        on_recorded: Callable[[Sandbox], None] = lambda _: None,
    ) -> None:
        self.request: CreateSandbox = request
        self.name: str = request.name
        self.status: SandboxStatus = SandboxStatus.PROVISIONING
        self.waiting: int = 0
        """How many creates wait for it."""
        self.handed_over: bool = False
        """Whether a create has returned it, so that none that fails may take it away."""
        self.recorded: trio.Event = trio.Event()
        """Set once the store knows it, or it has failed before."""
        self.settled: trio.Event = trio.Event()
        """Set once it is ready or has failed; another one after each start."""
        self.at_rest: trio.Event = trio.Event()
        """Set once nothing runs in it any more after a stop; another one after each start."""
        self.gone: trio.Event = trio.Event()
        """Set once what runs in it is ended: its container died, or it is being stopped or deleted."""
        self.removed: trio.Event = trio.Event()
        """Set once nothing of it is left (or what is left was reported)."""
        self.error: SandboxClientError | None = None
        """Why it failed."""
        self.lease: Lease | None = None if request.lease_seconds is None else Lease(request.lease_seconds)
        """What its owner has to renew, where it was made with one."""
        self.cleanup_error: SandboxClientError | None = None
        """What of it could not be removed."""
        self._shop = workshop
        self._on_recorded = on_recorded
        self._row: SandboxRow | None = None
        self._container: Container | None = None
        self._launcher: Launcher | None = None
        self._image: ImageSettings | None = None
        self._folder: Path | None = None
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._starts = StartLog(None, is_new=True)
        self._sessions = self._new_sessions()
        self._quota = self._new_quota()
        self._lifetime_changed = trio.lowlevel.ParkingLot()
        self._created_at = trio.current_time()
        self._last_active_at = self._created_at
        self._stopped_at: float | None = None
        self._idle_goes_on = False
        """Whether it rests because its host ended, which nobody asked for, so that its idle time goes on."""
        self._activities = 0
        self._connections = self._new_connections()
        self._captures = Captures()
        self._kept = False
        self._has_files = False
        """Whether it was ready once, so that what is in it is somebody's."""
        self._stop_asked = trio.Event()
        self._start_asked = False
        if row is not None:
            self._adopt(row)

    def _adopt(self, row: SandboxRow) -> None:
        self._row = row
        now, clock = datetime.now(UTC), trio.current_time()
        self._created_at = clock - age_s(row.created_at, now)
        self._stopped_at = None if row.stopped_at is None else clock - age_s(row.stopped_at, now)
        if row.last_active_at is not None:
            # It may have been active until just before the next note.
            self._last_active_at = min(clock, clock - age_s(row.last_active_at, now) + _NOTE_EVERY_S)
            self._idle_goes_on = True
        self._folder = sandbox_dir(self._shop.config.state_dir, row.engine_id)
        self._begin_log(is_new=False)
        self.status = SandboxStatus(row.status)
        if self.status is SandboxStatus.FAILED and not self._folder.exists():
            self._folder = None  # it died, and its files are gone: nothing to start again
        if self.status is SandboxStatus.FAILED:
            self.error = ResourceCreationError(row.status_message or "Sandbox provisioning failed", "sandbox")
        self.handed_over = self._has_files = True
        self.recorded.set()
        self.settled.set()
        self.at_rest.set()

    def __repr__(self) -> str:
        return f"<Sandbox {self.name!r} {self.status.value} with {self._sessions.running} commands>"

    @property
    def id(self) -> str:
        """Its id, once recorded; empty before."""
        return self._row.id if self._row is not None else ""

    @property
    def info(self) -> SandboxInfo:
        """What users see of it at this moment."""
        row = self._row
        limits = self.request.limits
        deadline = self._next_end()[0] if self.status is not SandboxStatus.STOPPED else self._rests_until()
        return SandboxInfo(
            id=self.id,
            name=self.name,
            status=self.status.value,
            status_message=str(self.error) if self.error is not None else None,
            created_at=row.created_at if row else None,
            updated_at=row.updated_at if row else None,
            ttl_seconds=row.ttl_seconds if row else None,
            idle_ttl_seconds=row.idle_ttl_seconds if row else None,
            expires_at=_wall_clock(deadline) if deadline < float("inf") else None,
            snapshot_id=row.snapshot_id if row else None,
            vcpus=limits.vcpus,
            mem_bytes=limits.mem_bytes,
            fs_capacity_bytes=limits.disk_bytes,
            delete_after_stop_seconds=row.delete_after_stop_seconds if row else None,
            stopped_at=row.stopped_at if row else None,
            labels=self.request.labels,
            run_config=row.run_config if row else self.request.run_config,
            lease_seconds=self.request.lease_seconds,
            is_waking=self._is_waking,
        )

    @property
    def _is_waking(self) -> bool:
        return self.status is SandboxStatus.PROVISIONING and self._has_files

    # -- its task ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Make it, serve, remove it. Never raises but when cancelled from outside, and then removes it as well."""
        try:
            with self._scope:
                async with self._leased():
                    await self._live()
        finally:
            if not self._kept:
                self.status = SandboxStatus.DELETING
            self.gone.set()
            with trio.CancelScope(shield=True):
                await (self._stop() if self._kept else self._remove())
            self.recorded.set()
            self.settled.set()
            self.removed.set()

    async def _live(self) -> None:
        try:
            if self._row is None:
                # One that was taken over has a row, and may have been started again before this task began.
                await self._provision()
                await self._serve()
            while True:
                await self._rest()
                if await self._started_again():
                    await self._serve()
        except Exception as error:  # noqa: BLE001  its failure is its users' news, and nobody else's
            await self._fail(sole_error(error))
            await trio.sleep_forever()

    @contextlib.asynccontextmanager
    async def _leased(self) -> AsyncIterator[None]:
        """Ask for its end when its lease has ended; whatever its status is then."""
        if (lease := self.lease) is None:
            yield
            return

        async def watch() -> None:
            await self.settled.wait()
            lease.renew()
            await lease.wait_ended()
            self.delete()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            yield

    def delete(self) -> None:
        """Ask for its end. Never waits; ``removed`` tells when it is done."""
        self.status = SandboxStatus.DELETING
        self.gone.set()
        self._scope.cancel()

    def keep(self) -> None:
        """Ask for its end, its record and files kept for the next host; deleted instead when it is half made."""
        if self.status is SandboxStatus.DELETING or not self._has_files:
            self.delete()
            return
        self._kept = True
        self.gone.set()
        self._scope.cancel()

    def stop(self) -> None:
        """Ask for the end of all that runs in it; its files stay. Never waits; ``at_rest`` tells when it is done.

        Raises:
            SandboxNotReadyError: It is neither ready nor stopped.
        """
        if self.status is SandboxStatus.STOPPED:
            return
        if self.status is not SandboxStatus.READY:
            raise self._not_ready()
        self.status = SandboxStatus.STOPPED
        self._stop_asked.set()

    @property
    def is_up(self) -> bool:
        """Whether it runs, or is about to."""
        return self.status in (SandboxStatus.READY, SandboxStatus.PROVISIONING)

    def start_again(self) -> None:
        """Ask for it to be ready again. Never waits; ``settled`` tells when it is, or has failed.

        Raises:
            SandboxNotReadyError: It is being deleted, or failed for good.
        """
        if self.is_up:
            return
        if self.status is not SandboxStatus.STOPPED and not (
            self.status is SandboxStatus.FAILED and self._folder is not None and self._has_files
        ):
            raise self._not_ready()
        self.status = SandboxStatus.PROVISIONING
        self.error = None
        self.settled = trio.Event()
        self._start_asked = True
        self._lifetime_changed.unpark_all()

    async def _rest(self) -> None:
        """Be there, without anything running, until it is started again; its days may be numbered."""
        while not self._start_asked:
            deadline = self._rests_until()
            if deadline <= trio.current_time():
                self.delete()
                await trio.sleep_forever()
            with trio.move_on_at(deadline):
                await self._lifetime_changed.park()

    def _rests_until(self) -> float:
        row = self._row
        assert row is not None
        return expiry_at_rest(
            created_at=self._created_at,
            stopped_at=self._stopped_at,
            ttl_seconds=row.ttl_seconds,
            delete_after_stop_seconds=row.delete_after_stop_seconds,
            last_active_at=self._last_active_at if self._idle_goes_on else None,
            idle_ttl_seconds=row.idle_ttl_seconds,
        )

    async def _started_again(self) -> bool:
        """Whether the start succeeded. If not, the files stay, and another one may be tried."""
        self._start_asked = self._idle_goes_on = False
        self._stopped_at = None
        self._stop_asked, self.at_rest = trio.Event(), trio.Event()
        try:
            await self._boot()
            return True
        except Exception as error:  # noqa: BLE001  as that of a first start
            self.error = await self._explained(sole_error(error))
        self.status = SandboxStatus.FAILED
        self._stopped_at = None
        with self._noting_trouble():
            self._row = await self._shop.records.set_sandbox_status(self.id, "failed", str(self.error))
        self.at_rest.set()
        self.settled.set()
        return False

    async def _provision(self) -> None:
        self._row, self.request = await record_sandbox(self._shop, self.request)
        self._quota = self._new_quota()
        self._begin_log(is_new=True)
        self._on_recorded(self)
        self.recorded.set()
        await self._boot()

    async def _boot(self) -> None:
        row = self._row
        assert row is not None
        await self._captures.wait()
        await self._shop.leftovers.free(sandbox_dir(self._shop.config.state_dir, row.engine_id))
        async with self._shop.creating:
            self._folder = sandbox_dir(self._shop.config.state_dir, row.engine_id)
            row = await secure_block(self._shop, row)
            # It may have been renamed meanwhile.
            self._row = attrs.evolve(self._row or row, uid_base=row.uid_base, moved_from=None)
            self._container, self._image = await make_container(self._shop, self.request, row)
        self._launcher = new_launcher(self._container, self._image, self.request, row.run_config)
        self.status = SandboxStatus.READY
        self._has_files = True
        self.touch()
        self.settled.set()

    async def _serve(self) -> None:
        """Serve until it is to stop; then end all that runs in it.

        Raises:
            _DiedError: The container ended by itself.
        """
        assert self._container is not None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(supervise, self._sessions.run, self._servant_failed, _SERVANT)
            nursery.start_soon(supervise, self._watch_lifetime, self._servant_failed, _SERVANT)
            nursery.start_soon(supervise, self._record_life, self._servant_failed, _SERVANT)
            nursery.start_soon(self._watch_container, self._container, nursery.cancel_scope)
            await self._stop_asked.wait()
            await self._captures.wait()
            await self._say_goodbye()
            self.gone.set()
            nursery.cancel_scope.cancel()
        if self.error is not None:
            raise _DiedError
        await self._come_to_rest()

    async def _watch_container(self, container: Container, serving: trio.CancelScope) -> None:
        reason = await container.wait_dead()
        self.status = SandboxStatus.FAILED
        self.error = SandboxClientError(f"Sandbox '{self.name}' died: {reason}")
        self.gone.set()
        serving.cancel()

    async def _say_goodbye(self) -> None:
        """SIGTERM for every process, and a bounded while to follow it."""
        assert self._container is not None
        with trio.move_on_after(self._shop.config.stop_grace_s):
            try:
                process = await self._container.spawn(
                    ProcessSpec(argv=("/bin/sh", "-c", _GOODBYE), env={}, cwd="/", identity=Identity(0, 0))
                )
            except (SpawnFailedError, ExecFailedError, OSError, trio.BrokenResourceError):
                return  # no shell, or no room for another process: they are killed at once
            try:
                await process.wait()
            finally:
                await process.aclose()

    async def _come_to_rest(self) -> None:
        with trio.CancelScope(shield=True):
            self._connections.close()
            await self._sessions.aclose()
            if self._container is not None:
                with self._noting_trouble():
                    await self._container.close()
                self._container = self._launcher = None
        self._starts.end_run()
        self._sessions = self._new_sessions()
        self._connections = self._new_connections()
        self.gone = trio.Event()
        with self._noting_trouble():
            self._row = await self._shop.records.set_sandbox_status(self.id, "stopped")
        self._stopped_at = trio.current_time()
        self.at_rest.set()

    async def _record_life(self) -> None:
        """Record that it is ready, and where another host may take it over, now and then when it was last active."""
        self._row = await self._shop.records.set_sandbox_status(self.id, "ready", idle_for_s=self._idle_for_s())
        noted = self._last_active_at
        while self._shop.config.keep:
            while not self._busy and self._last_active_at == noted:
                await self._lifetime_changed.park()
            await trio.sleep(_NOTE_EVERY_S)
            noted = self._last_active_at
            await self._shop.records.note_activity(self.id, self._idle_for_s())

    async def _watch_lifetime(self) -> None:
        while self.status is SandboxStatus.READY:
            deadline, ending = self._next_end()
            if deadline <= trio.current_time():
                if ending is Ending.STOP:
                    self.stop()
                else:
                    self.delete()
                return
            with trio.move_on_at(deadline) as waiting:
                await self._lifetime_changed.park()
            if waiting.cancelled_caught and stood_still(deadline, trio.current_time()):
                # Nobody could use it meanwhile, so it was not idle. Its whole life is over when it is.
                self.touch()

    def _servant_failed(self, error: Exception) -> None:
        _log.error("sandbox %s goes on without one of its own tasks", self.name, exc_info=error)

    async def _fail(self, error: Exception) -> None:
        self.status = SandboxStatus.FAILED
        if not isinstance(error, _DiedError):
            self.error = await self._explained(error)
        assert self.error is not None
        self.gone.set()
        self.recorded.set()
        # First the record: whoever finds this half done must not take what is left of the files for all of them.
        if self._row is not None:
            with self._noting_trouble():
                self._row = await self._shop.records.set_sandbox_status(self.id, "failed", str(self.error))
        with self._noting_trouble():
            await self._free()
        self.settled.set()

    async def _explained(self, error: Exception) -> SandboxClientError:
        """What its users are told of a failure: on a host without room, that, whatever it was that had none."""
        public = _public(error, self.name)
        if self._shop.room.was_the_reason(error) and not isinstance(public, HostDiskFullError):
            refusal = await self._shop.room.refusal("sandbox can be made or started", "sandbox")
            refusal.__cause__ = error
            return refusal
        return public

    async def _remove(self) -> None:
        async with self._shop.removing:
            self.cleanup_error = None
            with trio.CancelScope(deadline=trio.current_time() + self._shop.config.cleanup_limit_s) as scope:
                if self._row is not None and self._row.keep:
                    # The next host keeps what it finds, and must not keep what is left of this.
                    with self._noting_trouble():
                        await self._shop.records.set_sandbox_status(self.id, "deleting")
                with self._noting_trouble():
                    await self._free()
                if self._row is not None and self.cleanup_error is None:
                    with self._noting_trouble():
                        await self._shop.records.remove_sandbox(self.id)
            if scope.cancelled_caught:
                self._note_trouble(f"not done after {self._shop.config.cleanup_limit_s:g} seconds")

    async def _stop(self) -> None:
        idle_for_s = self._idle_for_s()
        async with self._shop.removing:
            with (
                self._noting_trouble(),
                trio.CancelScope(deadline=trio.current_time() + self._shop.config.cleanup_limit_s),
            ):
                self._connections.close()
                await self._captures.end()
                await self._sessions.aclose()
                if self._container is not None:
                    await self._container.close()
                    self._container = None
                if self.status in (SandboxStatus.READY, SandboxStatus.PROVISIONING):
                    self.status = SandboxStatus.STOPPED
                if self.status is SandboxStatus.STOPPED and not self.at_rest.is_set():
                    idle = None if self._stop_asked.is_set() else idle_for_s
                    self._row = await self._shop.records.set_sandbox_status(self.id, "stopped", idle_for_s=idle)

    async def _free(self) -> None:
        """Give back what the host holds for it; the record stays."""
        self._connections.close()
        await self._captures.end()
        await self._sessions.aclose()
        try:
            if self._container is not None:
                await self._container.close()
                self._container = None
        finally:
            if self._folder is not None:
                assert self._row is not None
                await self._shop.leftovers.free(self._folder)
                name = container_id(self._shop.records.identity, self._row.engine_id)
                await self._shop.engine.discard(self._folder, name)
                self._folder = None

    @contextlib.contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  a clean-up goes on with what it can do
            self._note_trouble(str(sole_error(error)))

    def _note_trouble(self, text: str) -> None:
        self.cleanup_error = SandboxClientError(
            f"Sandbox '{self.name}' could not be removed completely: {text}. "
            "The next start, or `sandboxrt doctor --clean`, tries again"
        )
        _log.error("%s", self.cleanup_error)

    # -- what users do with it ---------------------------------------------------------------------------------------

    async def attach(self, first: Execute | Reconnect) -> AnyAttachment:
        """Start a command or attach to one; in a stopped sandbox there is none to attach to.

        Raises:
            SandboxNotReadyError: It is not ready.
            SandboxOperationError: The record of what was begun in it cannot be read, so nothing may be.
        """
        try:
            await self._starts.load()
        except OSError as error:
            raise SandboxOperationError(f"The record of its commands cannot be read: {error}", "command") from error
        if isinstance(first, Reconnect) and (self.status is SandboxStatus.STOPPED or self._is_waking):
            return self._sessions.attach(first)
        self._ready()
        self.touch()
        return self._sessions.attach(first)

    async def connect(self, port: int) -> PortStream:
        """A connection to a port inside; errors as :meth:`sandboxrt.host.connections.Connections.connect` says.

        Raises:
            SandboxNotReadyError: It is not ready.
        """
        container, _ = self._ready()
        return await self._connections.connect(container, port)

    def open_tunnel(self, wire: Wire) -> Tunnel:
        """A tunnel over ``wire``, which ends with what runs in this sandbox.

        Raises:
            SandboxNotReadyError: It is not ready.
        """
        self._ready()
        tunnel = Tunnel(wire, self.connect, self._shop.config.tunnels)

        def failed(error: Exception) -> None:
            _log.error("a tunnel into sandbox %s failed in the host", self.name, exc_info=error)

        assert self._nursery is not None
        self._nursery.start_soon(supervise, tunnel.run, failed)
        return tunnel

    async def read_file(self, path: str) -> bytes:
        """The whole content of a regular file; errors as :func:`sandboxrt.host.files.read_file` says."""
        resolve_path(path)
        with self._file_operation("read") as container:
            return await read_file(container, self.name, path, await self._file_owner("read"))

    @contextlib.asynccontextmanager
    async def open_file(self, path: str) -> AsyncIterator[SandboxFile]:
        """A regular file, open for reading; errors as :func:`sandboxrt.host.files.open_file` says."""
        resolve_path(path)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self.activity())
            with self._file_operation("read") as container:
                opening = open_file(container, self.name, path, await self._file_owner("read"))
                file = await stack.enter_async_context(opening)
            yield file

    async def write_file(self, path: str, content: AsyncIterator[bytes]) -> None:
        """Replace or make a file; errors as :func:`sandboxrt.host.files.write_file` says."""
        resolve_path(path)
        with self._file_operation("write") as container:
            await write_file(container, path, content, await self._file_owner("write"))

    @contextlib.asynccontextmanager
    async def searching(self) -> AsyncIterator[Searcher]:
        """What searches in its files, as its default user."""
        with self._file_operation("search") as container:
            owner, (_, launcher) = await self._file_owner("search"), self._ready()
            yield Searcher(container, self.name, owner, launcher.tool_environment())

    def capture_source(self) -> CaptureSource:
        """What a capture needs of it.

        Raises:
            SandboxNotReadyError: It is neither ready nor stopped, or runs where nothing can be frozen.
        """
        row = self._row
        self._check_capturable()
        assert row is not None
        return CaptureSource(
            sandbox_id=row.id,
            snapshot_id=row.snapshot_id,
            fs_capacity_bytes=self.request.limits.disk_bytes,
            copy=self._copy_files,
        )

    def _check_capturable(self) -> None:
        if self.status is SandboxStatus.STOPPED:
            return
        container, _ = self._ready()
        if Feature.FREEZE not in container.features:
            raise SandboxNotReadyError(
                f"Sandbox '{self.name}' cannot be captured while it runs: its processes cannot be made to stand still "
                "here (there are no control groups, or it has a kernel of its own). Stop it first, then capture it"
            )

    async def _copy_files(self, target: Path, reserve_bytes: int) -> Captured:
        """Copy what was written in it, as of one instant; once it is at rest, where it is being stopped."""
        with self.activity(), self._captures.one():
            while True:
                if self.status is SandboxStatus.STOPPED:
                    await self.at_rest.wait()
                async with self._captures.turn:
                    if self.status is not SandboxStatus.STOPPED or self.at_rest.is_set():
                        return await self._copy_in_turn(target, reserve_bytes)
        raise SandboxNotReadyError(f"Sandbox '{self.name}' ended while it was captured")

    async def _copy_in_turn(self, target: Path, reserve_bytes: int) -> Captured:
        self._check_capturable()
        assert self._folder is not None
        assert self._row is not None
        if self.status is SandboxStatus.STOPPED:
            uid_base = self._row.uid_base
            await self._shop.leftovers.free(self._folder)
            return await self._shop.engine.capture(self._folder, uid_base, target, reserve_bytes=reserve_bytes)
        assert self._container is not None
        return await self._container.capture(target, reserve_bytes=reserve_bytes)

    def isolation(self) -> IsolationReport:
        """What isolation it really has.

        Raises:
            SandboxNotReadyError: It is not ready.
        """
        return self._ready()[0].report

    async def update(self, request: UpdateSandbox) -> None:
        """Change its name, TTLs or run configuration; the deadlines count from now on."""
        self._row = row = await self._shop.records.update_sandbox(
            self.id,
            new_name=request.new_name,
            ttl_seconds=request.ttl_seconds,
            idle_ttl_seconds=request.idle_ttl_seconds,
            delete_after_stop_seconds=request.delete_after_stop_seconds,
            run_config=request.run_config,
        )
        self.name = row.name
        if request.run_config is not None and self._container is not None:
            assert self._image is not None
            self._launcher = new_launcher(self._container, self._image, self.request, request.run_config)
        self.touch()

    def touch(self) -> None:
        """Something happens in it: the idle time begins anew."""
        self._last_active_at = trio.current_time()
        self._lifetime_changed.unpark_all()

    @contextlib.contextmanager
    def activity(self) -> Iterator[None]:
        """Something goes on in it for the length of the block: its idle time begins anew when it ends.

        The one way to count as activity; commands that somebody follows and connections to ports do by themselves.
        """
        self._activities += 1
        self.touch()
        try:
            yield
        finally:
            self._activities -= 1
            self.touch()

    @property
    def _busy(self) -> bool:
        return bool(self._sessions.attended or self._activities or len(self._connections))

    def _idle_for_s(self) -> float:
        return 0.0 if self._busy else trio.current_time() - self._last_active_at

    def require_ready(self) -> None:
        """Raise ``SandboxNotReadyError`` where nothing can be done in it now."""
        self._ready()

    def _ready(self) -> tuple[Container, Launcher]:
        if self.status is not SandboxStatus.READY or self._container is None or self._launcher is None:
            raise self._not_ready()
        return self._container, self._launcher

    def _not_ready(self) -> SandboxNotReadyError:
        return not_ready(self.name, self.status.value, None if self.error is None else str(self.error))

    @contextlib.contextmanager
    def _file_operation(self, operation: str) -> Iterator[Container]:
        container, _ = self._ready()
        try:
            with self.activity():
                yield container
        except (OSError, trio.BrokenResourceError) as error:
            if self.gone.is_set():
                raise SandboxOperationError(self.end_frame().error, operation, self.end_frame().error_type) from error
            raise SandboxOperationError(f"Cannot {operation}: {error}", operation, "OSError") from error

    async def _file_owner(self, operation: str) -> Identity:
        _, launcher = self._ready()
        try:
            return (await launcher.default_user()).identity
        except StartError as error:
            raise SandboxOperationError(error.frame.error, operation, error.frame.error_type) from error

    def _next_end(self) -> tuple[float, Ending]:
        row = self._row
        if row is None:
            return float("inf"), Ending.DELETE
        return next_end(
            created_at=self._created_at,
            last_active_at=self._last_active_at,
            busy=self._busy,
            ttl_seconds=row.ttl_seconds,
            idle_ttl_seconds=row.idle_ttl_seconds,
            delete_after_stop_seconds=row.delete_after_stop_seconds,
        )

    # -- what commands need of it (CommandSurroundings) --------------------------------------------------------------

    def end_frame(self) -> ErrorFrame:
        """What readers of its commands are told when it ended them."""
        if self.status is SandboxStatus.DELETING:
            return ErrorFrame(f"Sandbox '{self.name}' was deleted while the command ran", "SandboxDeleted")
        if self.status is SandboxStatus.STOPPED:
            return ErrorFrame(f"Sandbox '{self.name}' was stopped while the command ran", "SandboxStopped")
        return ErrorFrame(str(self.error or f"Sandbox '{self.name}' is gone"), "SandboxDied")

    async def start(self, request: Execute) -> Process:
        """Start a program in it. Raises :class:`StartError`."""
        if self._launcher is None:
            raise StartError(self.end_frame())
        return await self._launcher.start(request)

    @property
    def trees_known(self) -> bool:
        """Whether the end of a tree can be told from the end of its leader."""
        return self._container is not None and Feature.TREE_KILL in self._container.features

    @property
    def mem_bytes(self) -> int | None:
        """Its memory limit."""
        return self.request.limits.mem_bytes

    async def oom_kills(self) -> int:
        """The container's count of processes killed for lack of memory."""
        return await self._container.oom_kills() if self._container is not None else 0

    def _begin_log(self, *, is_new: bool) -> None:
        """Have starts remembered for as long as the sandbox: by the next host, too, where there may be one."""
        assert self._row is not None
        folder = sandbox_dir(self._shop.config.state_dir, self._row.engine_id) / SESSIONS_FOLDER
        self._starts = StartLog(folder if self._row.keep else None, is_new=is_new)
        self._sessions = self._new_sessions()

    def _new_sessions(self) -> SessionTable:
        return SessionTable(
            self._starts, self._new_command, self._start_command, self._shop.config.sessions, self.touch
        )

    def _new_quota(self) -> SpillQuota:
        limit, disk = self._shop.config.spill_quota_bytes, self.request.limits.disk_bytes
        if disk is not None:
            limit = min(limit, max(disk, _LEAST_SPILL_BYTES))
        return SpillQuota(limit, self._shop.spill)

    def _new_connections(self) -> Connections:
        return Connections(self._shop.config.connections, self.touch)

    def _new_command(self, command_id: str, request: Execute, on_finished: Callable[[Command], None]) -> Command:
        def finished(command: Command) -> None:
            on_finished(command)
            self.touch()
            if isinstance(command.outcome, Exit) and command.outcome.reason is not None:
                _commands_log.info("command %s of sandbox %s: %s", command.id, self.name, command.outcome.reason)

        return Command(command_id, request, self, self._shop.config.command, self._new_stream, finished)

    def _new_stream(self, on_change: Callable[[], None]) -> OutputStream:
        assert self._folder is not None
        settings = self._shop.config.command
        return OutputStream(
            ReplayBuffer(settings.replay_memory_bytes, settings.replay_spill_bytes),
            SpillFile(self._folder / SESSIONS_FOLDER, self._quota, self._shop.spilling),
            on_change,
            self._shop.replay,
        )

    def _start_command(self, command: Command) -> None:
        assert self._nursery is not None

        def failed(error: Exception) -> None:
            _log.error("command %s of sandbox %s failed in the host", command.id, self.name, exc_info=error)
            command.fail(ErrorFrame(f"The host failed to look after the command: {error}", "InternalError"))

        self._nursery.start_soon(supervise, command.run, failed)


def _public(error: Exception, name: str) -> SandboxClientError:
    if isinstance(error, SandboxClientError):
        return error
    _log.error("sandbox %s failed in the host", name, exc_info=error)
    return ResourceCreationError(f"Sandbox '{name}' failed: {error}", "sandbox", type(error).__name__)


def _wall_clock(deadline: float) -> str:
    at = datetime.now(UTC) + timedelta(seconds=deadline - trio.current_time())
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
