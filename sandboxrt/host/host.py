"""The host: the supervisor of one machine's sandboxes, and the one narrow interface to all of them.

Its methods are those that a client's transport asks for; the embedded transport and the server both call them. A host
lives in an ``async with``; leaving it deletes every sandbox it made.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence

import attrs
import trio

from sandboxrt.engine.base import Engine
from sandboxrt.errors import (
    ClientClosedError,
    HostDiskFullError,
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    SandboxOperationError,
    ValidationError,
)
from sandboxrt.host.attachment import AnyAttachment
from sandboxrt.host.config import HostConfig
from sandboxrt.host.connections import PortStream
from sandboxrt.host.directory import Directory
from sandboxrt.host.elsewhere import in_use_elsewhere, sandboxes_elsewhere
from sandboxrt.host.files import SandboxFile
from sandboxrt.host.leftovers import Leftovers
from sandboxrt.host.lifetime import check_ttl
from sandboxrt.host.ports import HostState
from sandboxrt.host.provision import Workshop, sandbox_dir
from sandboxrt.host.registries import Registries
from sandboxrt.host.replay import ReplayBudget
from sandboxrt.host.sandbox import Sandbox, SandboxStatus
from sandboxrt.host.search import FoundFiles, FoundLines
from sandboxrt.host.spill import SpillBudget
from sandboxrt.host.tunnel import Tunnel
from sandboxrt.models import IsolationReport, ResourceStatus, Snapshot
from sandboxrt.protocol.exec import Execute, Reconnect
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSandbox, CreateSnapshot, SandboxInfo, UpdateSandbox
from sandboxrt.room import Room
from sandboxrt.snapshots.content import Progress
from sandboxrt.store import SandboxRow, container_id
from sandboxrt.tunnels.mux import Wire

__all__ = ["Host", "HostConfig"]

_log = logging.getLogger("sandboxrt.host")
_REMEMBERED = 2000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class Host:
    """Creates, finds and removes sandboxes, and hands out what runs in them. Made by ``open_host``."""

    def __init__(self, config: HostConfig, engine: Engine, state: HostState, room: Room | None = None) -> None:
        self.config = config
        self.room: Room = room or Room(config.state_dir, config.min_free_bytes)
        self.nursery: trio.Nursery | None = None
        self._records = state.records
        self._snapshots = state.snapshots
        self._registries = Registries(state.registries)
        self._sandboxes = Directory()
        self._workshop = Workshop(
            config=config,
            engine=engine,
            leftovers=Leftovers(engine),
            records=state.records,
            snapshots=state.snapshots,
            reclaim=state.reclaim,
            creating=trio.CapacityLimiter(config.max_concurrent_creates),
            removing=trio.CapacityLimiter(config.max_concurrent_deletes),
            spilling=trio.CapacityLimiter(4),
            replay=ReplayBudget(config.replay_budget_bytes),
            room=self.room,
            spill=SpillBudget(config.spill_budget_bytes, self.room.min_free_bytes),
        )
        self._gone: dict[str, str] = {}
        """Why sandboxes are gone whose users were not asked, by name and by id; the newest."""
        self._closed = False

    def __repr__(self) -> str:
        return f"<Host with {len(self._sandboxes)} sandboxes in {str(self.config.state_dir)!r}>"

    @property
    def registries(self) -> Registries:
        """Named registries, and their logins for builds."""
        return self._registries

    # -- sandboxes ---------------------------------------------------------------------------------------------------

    async def create_sandbox(self, request: CreateSandbox) -> SandboxInfo:
        """Make a sandbox; with a name that this host has already, wait for that one instead (a repeated create).

        An ``exclusive`` create joins only the one that has its idempotency key.

        Raises:
            ResourceNotFoundError: There is no such snapshot.
            ResourceTimeoutError: It was not ready in ``timeout_s``; it is removed.
            ResourceCreationError: It could not be made; nothing is left of it.
            HostDiskFullError: The host has too little room.
            ResourceAlreadyExistsError: The name belongs to another process's sandbox, or to one of another create.
            QuotaExceededError: It does not fit into the quota of its tenant.
            ValidationError: A name or TTL that cannot be.
            ValueError: Both a snapshot's id and its name were given.

        Cancellation: atomic; what was made is removed, which is shielded and bounded.
        """
        _check(request)
        if self.room.is_low and self._sandboxes.named(request.name, request.tenant) is None:
            raise await self.room.refusal("sandbox can be made", "sandbox")
        while (sandbox := self._sandboxes.named(request.name, request.tenant)) is not None and sandbox.gone.is_set():
            if sandbox.status is SandboxStatus.FAILED:
                break
            await sandbox.removed.wait()
        if sandbox is None:
            sandbox = self._start(request)
        elif request.exclusive and not _repeats(request, sandbox.request):
            raise ResourceAlreadyExistsError(f"Sandbox '{request.name}' already exists", "sandbox")
        sandbox.waiting += 1
        try:
            await self._await_creation(sandbox, request)
        except BaseException:
            # A repetition may wait for it, or have it already; then it is not this create's to take away.
            if sandbox.waiting == 1 and not sandbox.handed_over:
                with trio.CancelScope(shield=True):
                    sandbox.delete()
                    await sandbox.removed.wait()
            raise
        finally:
            sandbox.waiting -= 1
        sandbox.handed_over = True
        return sandbox.info

    async def get_sandbox(self, name: str, tenant: str = "") -> SandboxInfo:
        """One sandbox, by name or id; errors as :meth:`find` says."""
        return (await self.find(name, tenant)).info

    async def list_sandboxes(self, tenant: str = "") -> list[SandboxInfo]:
        """A tenant's sandboxes on this host, oldest first."""
        await trio.lowlevel.checkpoint()
        return [sandbox.info for sandbox in self._sandboxes.of_tenant(tenant)]

    async def list_elsewhere(self) -> list[SandboxInfo]:
        """The sandboxes of other hosts in this one's state folder, each with its owner; no server's."""
        self._check_open()
        return await sandboxes_elsewhere(self._records)

    def count_by_status(self) -> dict[str, int]:
        """How many sandboxes of all tenants are in which status."""
        return dict(Counter(sandbox.status.value for sandbox in self._sandboxes))

    def output_bytes(self) -> dict[str, int]:
        """What the output that is kept for readers takes, of all commands of all tenants."""
        return {"memory": self._workshop.replay.used_bytes, "disk": self._workshop.spill.used_bytes}

    async def update_sandbox(self, name: str, request: UpdateSandbox) -> SandboxInfo:
        """Change a sandbox's name or TTLs.

        Raises:
            ResourceNameConflictError: The new name belongs to another sandbox.
            ValidationError: A name or TTL that cannot be.
        """
        check_ttl("ttl_seconds", request.ttl_seconds)
        check_ttl("idle_ttl_seconds", request.idle_ttl_seconds)
        check_ttl("delete_after_stop_seconds", request.delete_after_stop_seconds)
        sandbox = await self.find(name)
        await sandbox.recorded.wait()
        new_name = request.new_name
        if new_name is None or new_name == sandbox.name:
            await sandbox.update(attrs.evolve(request, new_name=None))
            return sandbox.info
        _check_name(new_name)
        if sandbox.removed.is_set():
            raise ResourceNotFoundError(f"Sandbox '{name}' not found", "sandbox")
        # Reserved before the store is asked, so that no create comes in between.
        if not self._sandboxes.reserve(sandbox, new_name):
            raise ResourceNameConflictError(f"Sandbox name '{new_name}' already in use", "sandbox")
        old_name = sandbox.name
        try:
            await sandbox.update(request)
        finally:
            self._sandboxes.release(sandbox, old_name if sandbox.name == new_name else new_name)
        return sandbox.info

    async def delete_sandbox(self, name: str, why: str = "", *, made_with: str | None = None) -> None:
        """Remove a sandbox with all that runs in it.

        Args:
            name: Its name or id.
            why: What those are told who look for it later, as far as it is remembered.
            made_with: Only if this was its create's idempotency key: for who gave that create up, and cannot know
                whether it made anything, or whether somebody else's sandbox has the name.

        Raises:
            ResourceNotFoundError: There is none of that name or id, or it was made with another key.
            SandboxClientError: Something of it could not be removed; the message names it.

        Cancellation: The removal goes on; only the waiting ends.
        """
        sandbox = await self.find(name)
        if made_with is not None and sandbox.request.idempotency_key != made_with:
            raise ResourceNotFoundError(f"Sandbox '{name}' was made by another create than that one", "sandbox")
        if why:
            self._gone |= {sandbox.name: f": {why}", sandbox.id: f": {why}"}
            while len(self._gone) > _REMEMBERED:
                del self._gone[next(iter(self._gone))]
        sandbox.delete()
        await sandbox.removed.wait()
        if sandbox.cleanup_error is not None:
            raise sandbox.cleanup_error

    async def stop_sandbox(self, name: str) -> SandboxInfo:
        """End all that runs in a sandbox; its files stay. Idempotent.

        Raises:
            SandboxNotReadyError: It is neither ready nor stopped.

        Cancellation: The stop goes on; only the waiting ends.
        """
        sandbox = await self.find(name)
        sandbox.stop()
        await _first(sandbox.at_rest, sandbox.removed)
        return sandbox.info

    async def start_sandbox(self, name: str, timeout_s: float | None = 120.0) -> SandboxInfo:
        """Make a stopped sandbox ready again. Idempotent.

        Args:
            name: Its name or id.
            timeout_s: How long to wait for that; ``None`` = not at all.

        Raises:
            SandboxNotReadyError: It failed for good, or is being deleted.
            ResourceCreationError: It could not be started; its files are still there.
            HostDiskFullError: The host has too little room; it stays as it is.
            ResourceTimeoutError: It is not ready in time; it still becomes so.

        Cancellation: The start goes on; only the waiting ends.
        """
        sandbox = await self.find(name)
        if not sandbox.is_up:
            await self.room.require("sandbox can be started", "sandbox")
        sandbox.start_again()
        if timeout_s is None:
            return sandbox.info
        return await self._await_ready(sandbox, timeout_s)

    async def sandbox_status(self, name: str) -> ResourceStatus:
        """A sandbox's status and, if it failed, why."""
        info = (await self.find(name)).info
        return ResourceStatus(info.status, info.status_message)

    async def wait_for_sandbox(self, name: str, timeout_s: float, poll_interval_s: float = 1.0) -> SandboxInfo:
        """Wait until a sandbox is ready; nothing is polled here, so ``poll_interval_s`` has no effect.

        Raises:
            ResourceCreationError: It failed.
            ResourceTimeoutError: It is not ready in time.
        """
        return await self._await_ready(await self.find(name), timeout_s)

    async def _await_ready(self, sandbox: Sandbox, timeout_s: float) -> SandboxInfo:
        await self._await_settled(sandbox, timeout_s)
        if isinstance(sandbox.error, HostDiskFullError):
            raise sandbox.error
        if sandbox.error is not None:
            raise ResourceCreationError(
                str(sandbox.error) or "Sandbox provisioning failed",
                "sandbox",
                getattr(sandbox.error, "error_type", None),
            )
        return sandbox.info

    async def find(self, name_or_id: str, tenant: str = "") -> Sandbox:
        """The sandbox of that name or id.

        Args:
            name_or_id: Its name within the tenant, or its id.
            tenant: Whose; the machine's own (``""``) finds everybody's by id.

        Raises:
            ResourceNotFoundError: There is none.
            ResourceInUseError: It belongs to another host, which ``used_by`` names; use it there.
        """
        self._check_open()
        sandbox = self._sandboxes.named(name_or_id, tenant) or self._sandboxes.with_id(name_or_id)
        if sandbox is not None and tenant in ("", sandbox.request.tenant):
            # No turn of the scheduler: this is on the way of every command, and what follows takes one.
            await trio.lowlevel.checkpoint_if_cancelled()
            return sandbox
        why = self._gone.get(name_or_id, "") if not tenant else ""
        missing = ResourceNotFoundError(f"Sandbox '{name_or_id}' not found{why}", "sandbox")
        if tenant:
            raise missing
        try:
            row = await self._records.find_sandbox(name_or_id)
        except ResourceNotFoundError:
            raise missing from None
        if row.owner_id == self._records.owner_id or row.owner_id in await self._records.dead_owners():
            raise missing
        raise await in_use_elsewhere(self._records, row)

    # -- snapshots ---------------------------------------------------------------------------------------------------

    async def create_snapshot(self, request: CreateSnapshot) -> Snapshot:
        """Begin to build a snapshot; it goes on by itself. Errors as of :meth:`Registries.resolve`."""
        self._check_open()
        return await self._snapshots.create(await self._registries.resolve(request))

    async def capture_snapshot(self, name: str, request: CaptureSnapshot) -> Snapshot:
        """Begin to make a snapshot of a sandbox's files as they are now, without ``/tmp``; it goes on by itself.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
            SandboxNotReadyError: It is neither ready nor stopped, or runs where nothing can be frozen: stop it first.
            ValidationError: A value is wrong; ``field`` names it.
        """
        return await self._snapshots.capture(request, (await self.find(name)).capture_source())

    async def get_snapshot(self, reference: str, tenant: str | None = None, *, newest: bool = False) -> Snapshot:
        """One snapshot, by id, ``name:tag`` or name; of any tenant by id alone. Raises ``ResourceNotFoundError``."""
        self._check_open()
        return await self._snapshots.get(reference, tenant, newest=newest)

    async def list_snapshots(
        self, name_contains: str | None = None, limit: int | None = None, offset: int | None = None, tenant: str = ""
    ) -> list[Snapshot]:
        """A page of a tenant's snapshots."""
        self._check_open()
        return list(await self._snapshots.list(name_contains=name_contains, limit=limit, offset=offset, tenant=tenant))

    async def snapshot_tags(self, name: str, tenant: str = "") -> list[tuple[str, str]]:
        """The tags of a snapshot's name, each with the id that it means. Raises ``ResourceNotFoundError``."""
        self._check_open()
        return list(await self._snapshots.tags(name, tenant))

    async def host_snapshot(self) -> Snapshot:
        """The built-in snapshot, made from this machine's own files; errors as the snapshot library says."""
        self._check_open()
        return await self._snapshots.host_snapshot()

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot. Raises ``ResourceNotFoundError`` or ``ResourceInUseError``."""
        self._check_open()
        await self._snapshots.delete(snapshot_id)

    async def wait_for_snapshot(self, snapshot_id: str, timeout_s: float, poll_interval_s: float = 2.0) -> Snapshot:
        """Wait until a snapshot is ready. Raises ``ResourceCreationError`` or ``ResourceTimeoutError``."""
        self._check_open()
        return await self._snapshots.wait(snapshot_id, timeout_s)

    def snapshot_progress(self, snapshot_id: str) -> AsyncIterator[Progress]:
        """News of a snapshot's build: where it is now, then every change, until it ends."""
        self._check_open()
        return self._snapshots.progress(snapshot_id)

    # -- inside of a sandbox -----------------------------------------------------------------------------------------

    async def attach(self, name: str, first: Execute | Reconnect) -> AnyAttachment:
        """Start a command or attach to one; what goes wrong with the command comes as an ``ErrorFrame``.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
            SandboxNotReadyError: It is not ready.
        """
        return await (await self.find(name)).attach(first)

    async def wait_ended(self, name: str) -> None:
        """Wait until what runs in a sandbox now has ended: it died, or is being stopped or deleted.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
        """
        await (await self.find(name)).gone.wait()

    async def connect(self, name: str, port: int) -> PortStream:
        """A connection to a port inside a sandbox, which counts as activity while it is open. The caller closes it.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
            SandboxNotReadyError: It is not ready, or ended meanwhile.
            ValueError: That is no port.
            TunnelPortNotAllowedError: The host's rules exclude it.
            TunnelConnectionRefusedError: Nothing listens there, or what listens does not accept.
            SandboxOperationError: There are too many, or this sandbox's runtime cannot make one.

        Cancellation: atomic.
        """
        return await (await self.find(name)).connect(port)

    async def open_tunnel(self, name: str, wire: Wire) -> Tunnel:
        """A tunnel into a sandbox over ``wire``; it ends with what runs there, or with the wire.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
            SandboxNotReadyError: It is not ready.
        """
        return (await self.find(name)).open_tunnel(wire)

    async def read_file(self, name: str, path: str) -> bytes:
        """The whole content of a file; errors as :func:`sandboxrt.host.files.read_file` says."""
        return await (await self.find(name)).read_file(path)

    @contextlib.asynccontextmanager
    async def open_file(self, name: str, path: str) -> AsyncIterator[SandboxFile]:
        """A file, open for reading in pieces; errors as :func:`sandboxrt.host.files.open_file` says."""
        async with (await self.find(name)).open_file(path) as file:
            yield file

    async def write_file(self, name: str, path: str, content: AsyncIterator[bytes]) -> None:
        """Replace or make a file; errors as :func:`sandboxrt.host.files.write_file` says."""
        sandbox = await self.find(name)
        await self.room.require("file can be uploaded", operation="write")
        try:
            await sandbox.write_file(path, content)
        except SandboxOperationError as error:
            if error.error_type == "NoSpace" and self.room.is_low:
                raise await self.room.refusal("file can be uploaded", operation="write") from error
            raise

    async def glob(self, name: str, pattern: str, path: str, limit: int | None = None) -> FoundFiles:
        """Search for names of files; see :meth:`sandboxrt.host.search.Searcher.glob`."""
        async with (await self.find(name)).searching() as searcher:
            return await searcher.glob(pattern, path, limit)

    async def grep(
        self, name: str, text: str, path: str, glob: str | None = None, limit: int | None = None
    ) -> FoundLines:
        """Search for text in files; see :meth:`sandboxrt.host.search.Searcher.grep`."""
        async with (await self.find(name)).searching() as searcher:
            return await searcher.grep(text, path, glob, limit)

    async def isolation(self, name: str) -> IsolationReport:
        """What isolation a sandbox really has."""
        return (await self.find(name)).isolation()

    async def renew_lease(self, name: str) -> int:
        """Note that a sandbox's owner lives; how many seconds that holds.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
            ValidationError: It was made without a lease.
        """
        sandbox = await self.find(name)
        if sandbox.lease is None:
            raise ValidationError(f"Sandbox '{sandbox.name}' was made without a lease", "lease_seconds")
        sandbox.lease.renew()
        return sandbox.lease.seconds

    # -- its own life ------------------------------------------------------------------------------------------------

    def adopt(self, rows: Sequence[SandboxRow], running: Collection[str] = ()) -> None:
        """Take sandboxes over that a dead host has kept. They can be used at once; what is ``deleting`` goes.

        Args:
            rows: What is recorded of them.
            running: The ids of those that ran when their host died.
        """
        assert self.nursery is not None
        folders = {row.id: sandbox_dir(self.config.state_dir, row.engine_id) for row in rows}
        leftovers = self._workshop.leftovers
        containers = {folders[row.id]: container_id(self._records.identity, row.engine_id) for row in rows}
        leftovers.add(containers, (folder for id_, folder in folders.items() if id_ in running))
        self.nursery.start_soon(leftovers.run)
        for row in rows:
            request = CreateSandbox(
                name=row.name,
                snapshot_id=row.snapshot_id,
                ttl_seconds=row.ttl_seconds,
                idle_ttl_seconds=row.idle_ttl_seconds,
                delete_after_stop_seconds=row.delete_after_stop_seconds,
                limits=row.limits,
                require=row.require,
                allow_unenforced_limits=row.allow_unenforced_limits,
                env=row.env,
                run_config=row.run_config,
                labels=row.labels,
                tenant=row.tenant,
                idempotency_key=row.idempotency_key,
                lease_seconds=row.lease_seconds,
            )
            sandbox = Sandbox(request, self._workshop, row)
            self._sandboxes.add(sandbox)
            if sandbox.status is SandboxStatus.DELETING:
                sandbox.delete()
            self.nursery.start_soon(self._run, sandbox)

    async def shut_down(self) -> None:
        """Remove every sandbox, or stop those that are to be kept, as many at once as allowed. No new ones are made."""
        self._closed = True
        sandboxes = tuple(self._sandboxes)
        for sandbox in sandboxes:
            if self.config.keep:
                sandbox.keep()
            else:
                sandbox.delete()
        with trio.move_on_after(self.config.cleanup_limit_s):
            await self._workshop.leftovers.free_urgent()
        for sandbox in sandboxes:
            await sandbox.removed.wait()

    def _start(self, request: CreateSandbox) -> Sandbox:
        self._check_open()
        assert self.nursery is not None
        sandbox = Sandbox(request, self._workshop, on_recorded=self._sandboxes.identify)
        self._sandboxes.add(sandbox)
        self.nursery.start_soon(self._run, sandbox)
        return sandbox

    async def _run(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.run()
        finally:
            self._sandboxes.remove(sandbox)

    async def _await_creation(self, sandbox: Sandbox, request: CreateSandbox) -> None:
        if request.wait_for_ready:
            await self._await_settled(sandbox, request.timeout_s)
        else:
            await sandbox.recorded.wait()
        if sandbox.error is not None and (request.wait_for_ready or not sandbox.id):
            raise sandbox.error
        if sandbox.removed.is_set():
            raise ResourceCreationError(f"Sandbox '{sandbox.name}' was deleted while it was made", "sandbox")

    async def _await_settled(self, sandbox: Sandbox, timeout_s: float) -> None:
        with trio.move_on_after(timeout_s):
            await sandbox.settled.wait()
        if not sandbox.settled.is_set():
            raise ResourceTimeoutError(
                f"Sandbox '{sandbox.name}' not ready after {timeout_s:g}s", "sandbox", sandbox.status.value
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosedError("The host is closed")


async def _first(*events: trio.Event) -> None:
    """Wait for one of the events."""
    async with trio.open_nursery() as nursery:

        async def watch(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(watch, event)


def _check(request: CreateSandbox) -> None:
    if request.snapshot_id is not None and request.snapshot_name is not None:
        raise ValueError("Give either snapshot_id or snapshot_name, not both")
    if request.snapshot is not None and (request.snapshot_id or request.snapshot_name):
        raise ValueError("Give either snapshot or one of snapshot_id and snapshot_name, not both")
    _check_name(request.name)
    check_ttl("ttl_seconds", request.ttl_seconds)
    check_ttl("idle_ttl_seconds", request.idle_ttl_seconds)
    check_ttl("delete_after_stop_seconds", request.delete_after_stop_seconds)


def _repeats(request: CreateSandbox, first: CreateSandbox) -> bool:
    return request.idempotency_key is not None and request.idempotency_key == first.idempotency_key


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValidationError(
            f"Sandbox name {name!r} is not possible: use 1 to 63 letters, digits, '-', '_' or '.', "
            "beginning with a letter or digit",
            "name",
        )
