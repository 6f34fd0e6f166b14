"""The snapshots of one state folder: builds them, finds them, hands out what sandboxes start from.

A build ends with a rename, then with a row that says ``ready``; whoever dies before leaves a row that says ``building``
and a lock that is free, which the next library to open cleans up.

Source: ours; the states of a snapshot are those of protocol.md §2.5.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import attrs
import trio

from sandboxrt.engine.base import Layer
from sandboxrt.errors import (
    ClientClosedError,
    ResourceCreationError,
    ResourceInUseError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    SandboxClientError,
    SandboxNotReadyError,
    ValidationError,
)
from sandboxrt.models import DEFAULT_LIMITS, Snapshot
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSnapshot
from sandboxrt.room import Room
from sandboxrt.snapshots.captures import CaptureBuilder
from sandboxrt.snapshots.content import CaptureSource, Phase, Progress, SnapshotConfig, SnapshotContent
from sandboxrt.snapshots.disk import give_to_sandboxes
from sandboxrt.snapshots.export import Exported, export_image
from sandboxrt.snapshots.files import SnapshotFiles
from sandboxrt.snapshots.host import HOST_NAME, OWNERS, build_host, fingerprint
from sandboxrt.snapshots.oci_images import ImageBuilder, UnpackedImage, check_reference
from sandboxrt.store import SnapshotRow, Store, canonical_id

__all__ = ["SnapshotLibrary"]

T = TypeVar("T")

_log = logging.getLogger("sandboxrt.snapshots")
_FOREIGN_POLL_S: Final = 0.2
_MAX_NAME: Final = 255
_FAILURE_KEPT: Final = timedelta(hours=24)
_FAILURES_KEPT: Final = 50
"""How long a failed build can still be asked for its reason, and how many of a tenant's can."""


@attrs.define(eq=False)
class _Build:
    """A build that is going on here, and who waits for news of it."""

    progress: Progress = attrs.field(factory=lambda: Progress(Phase.WAIT))
    changed: trio.Event = attrs.field(factory=trio.Event)
    done: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def report(self, progress: Progress) -> None:
        if progress != self.progress:
            self.progress = progress
            self.changed.set()
            self.changed = trio.Event()


@attrs.frozen
class _Unpacked:
    """The files of ready images, for a build that may have them, too."""

    store: Store
    files: SnapshotFiles
    snapshot_id: str

    async def of_digest(self, image_digest: str) -> UnpackedImage | None:
        return await self._share(await self.store.share_files(self.snapshot_id, image_digest=image_digest))

    async def of_layers(self, layers_key: str) -> UnpackedImage | None:
        return await self._share(await self.store.share_files(self.snapshot_id, layers_key=layers_key))

    async def _share(self, other: SnapshotRow | None) -> UnpackedImage | None:
        if other is None:
            return None
        content = SnapshotContent.from_json(other.content or "", self.files.folder)
        whole = await self.files.blocking(lambda: all(layer.path.is_dir() for layer in content.layers))
        if not whole:
            # Somebody removed them by hand; what is built now is whole.
            await self.store.keep_own_files(self.snapshot_id)
            return None
        return UnpackedImage(content, other.fs_used_bytes or 0, other.layers_key)


class SnapshotLibrary:
    """The snapshots of a state folder; ``async with`` it: it owns the tasks that build.

    Args:
        store: The records, open on the same folder.
        state_dir: The folder; the store's own where left out.
        config: Registries and bounds.
        room: The room for it; that of the folder where left out.

    Cancellation: leaving cancels what is being built, and removes it.
    """

    def __init__(
        self,
        store: Store,
        state_dir: Path | str | None = None,
        config: SnapshotConfig | None = None,
        room: Room | None = None,
    ) -> None:
        self._store = store
        self._room = room or Room(Path(state_dir or store.state_dir))
        self._config = config or SnapshotConfig()
        if self._config.min_free_bytes is None:
            self._config = attrs.evolve(self._config, min_free_bytes=self._room.min_free_bytes)
        self._folder = Path(state_dir or store.state_dir).absolute() / "snapshots"
        self._files = SnapshotFiles(self._folder, trio.CapacityLimiter(2))
        self._turns = trio.CapacityLimiter(self._config.max_builds)
        self._capture_turns = trio.CapacityLimiter(self._config.max_builds)
        self._builds: dict[str, _Build] = {}
        self._ready: dict[str, tuple[SnapshotRow, SnapshotContent]] = {}
        self._making_host = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._stack: contextlib.AsyncExitStack | None = None

    def __repr__(self) -> str:
        return f"<SnapshotLibrary {str(self._folder)!r}, {len(self._builds)} builds>"

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._clean()
            self._nursery = await stack.enter_async_context(_nursery_that_cancels())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        self._nursery = None
        await self._stack.__aexit__(None, None, None)

    # -- what users ask for ------------------------------------------------------------------------------------------

    async def create(self, request: CreateSnapshot) -> Snapshot:
        """Begin to build a snapshot from an image; it goes on after this returns.

        Returns:
            The snapshot, ``building``; :meth:`wait` for it.

        Raises:
            ValidationError: A value is wrong; ``field`` names it.
            HostDiskFullError: The host has too little room.
            ClientClosedError: The library is closed.
        """
        _check(request.name, request.fs_capacity_bytes)
        check_reference(request)
        nursery = self._open_nursery()
        await self._room.require("image can be built or imported", "snapshot")
        # Recording and starting must not be torn apart by a cancellation: a row without a task would build for ever.
        with trio.CancelScope(shield=True):
            row = await self._store.add_snapshot(
                name=request.name,
                kind="image",
                fs_capacity_bytes=request.fs_capacity_bytes,
                docker_image=request.docker_image,
                tenant=request.tenant,
                tag=request.tag,
                run_config=request.run_config,
                registry_id=request.registry_id,
            )
            build = self._builds[row.id] = _Build()
            make = partial(self._make_image, row, build, request)
            nursery.start_soon(self._build, row, build, make, self._config.build_timeout_s)
        return row.public

    async def capture(self, request: CaptureSnapshot, source: CaptureSource) -> Snapshot:
        """Begin to make a snapshot of a sandbox's files; it goes on after this returns.

        Returns:
            The snapshot, ``building``; :meth:`wait` for it.

        Raises:
            ValidationError: A value is wrong; ``field`` names it.
            HostDiskFullError: The host has too little room.
            ClientClosedError: The library is closed.
        """
        _check(request.name, request.fs_capacity_bytes)
        nursery = self._open_nursery()
        await self._room.require("sandbox can be captured", "snapshot")
        base = await self._store.find_snapshot(source.snapshot_id)
        capacity = request.fs_capacity_bytes or max(source.fs_capacity_bytes or 0, base.fs_capacity_bytes)
        with trio.CancelScope(shield=True):
            row = await self._store.add_snapshot(
                name=request.name,
                kind="capture",
                fs_capacity_bytes=capacity,
                source_sandbox_id=source.sandbox_id,
                tenant=request.tenant,
                tag=request.tag,
                run_config=request.run_config or base.run_config,
                base_id=base.id,
            )
            build = self._builds[row.id] = _Build()
            make = partial(self._make_capture, row, build, source, base, request.fs_capacity_bytes)
            nursery.start_soon(self._build, row, build, make, self._config.capture_timeout_s)
        return row.public

    def _open_nursery(self) -> trio.Nursery:
        if self._nursery is None:
            raise ClientClosedError("The snapshot library is closed")
        return self._nursery

    async def wait(self, snapshot_id: str, timeout_s: float = math.inf) -> Snapshot:
        """Wait until a snapshot is ready.

        Raises:
            ResourceTimeoutError: It is still being built after ``timeout_s``; it goes on building.
            ResourceCreationError: The build failed; the message is the tool's own reason.
            ResourceNotFoundError: There is no such snapshot, or it was deleted meanwhile.
        """
        row = await self._store.find_snapshot(snapshot_id)
        with trio.move_on_after(timeout_s):
            while row.status == "building":
                build = self._builds.get(row.id)
                if build is not None:
                    await build.done.wait()
                else:
                    # Another process builds it; a shared file cannot wake us.
                    await trio.sleep(_FOREIGN_POLL_S)
                row = await self._store.find_snapshot(row.id)
        if row.status == "building":
            raise ResourceTimeoutError(f"Snapshot '{row.id}' not ready after {timeout_s:g}s", "snapshot", row.status)
        if row.status == "failed":
            raise ResourceCreationError(row.status_message or "Snapshot build failed", "snapshot", row.error_type)
        return row.public

    async def progress(self, snapshot_id: str) -> AsyncIterator[Progress]:
        """News of a build that this library runs: where it is now, then every change, until it ends.

        A slow reader gets the newest state and misses those between. Another process's build, or a finished one,
        gives a single state. Raises :class:`ResourceNotFoundError`.
        """
        row = await self._store.find_snapshot(snapshot_id)
        build = self._builds.get(row.id)
        if build is None:
            phase = {"ready": Phase.DONE, "failed": Phase.FAILED}.get(row.status, Phase.WAIT)
            yield Progress(phase, row.fs_used_bytes or 0, row.fs_used_bytes)
            return
        while True:
            changed, progress, done = build.changed, build.progress, build.done.is_set()
            yield progress
            if done:
                return
            if not build.done.is_set() and progress == build.progress:
                await changed.wait()

    async def get(self, reference: str, tenant: str | None = None, *, newest: bool = False) -> Snapshot:
        """The snapshot that a reference means; see :meth:`sandboxrt.store.Store.find_snapshot`."""
        return (await self._store.find_snapshot(reference, tenant, newest=newest)).public

    async def tags(self, name: str, tenant: str = "") -> tuple[tuple[str, str], ...]:
        """The tags of a name, each with the id that it means. Raises ``ResourceNotFoundError``."""
        return await self._store.snapshot_tags(name, tenant)

    async def list(
        self,
        *,
        name_contains: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
        tenant: str = "",
    ) -> tuple[Snapshot, ...]:
        """A page of snapshots, newest first; see :meth:`sandboxrt.store.Store.list_snapshots`."""
        rows = await self._store.list_snapshots(name_contains=name_contains, limit=limit, offset=offset, tenant=tenant)
        return tuple(row.public for row in rows)

    async def delete(self, snapshot_id: str) -> None:
        """Remove a snapshot; one that is being built here is given up first.

        Raises:
            ResourceNotFoundError: There is no such snapshot.
            ResourceInUseError: Sandboxes use it, or snapshots that were captured from those; ``used_by`` names them.
                Delete those first.

        Cancellation: Before the record is gone: nothing happened. Afterwards the files are removed all the same.
        """
        row = await self._store.remove_snapshot(snapshot_id)
        with trio.CancelScope(shield=True):
            self._ready.pop(row.id, None)
            build = self._builds.get(row.id)
            if build is not None:
                build.scope.cancel()
                await build.done.wait()
            await self._discard(row)

    async def export(self, snapshot_id: str, target: Path, *, tag: str) -> Exported:
        """Write a snapshot, with what it lies on, as an OCI image; see :func:`sandboxrt.snapshots.export.export_image`.

        Raises:
            ResourceNotFoundError: There is no such snapshot.
            SandboxNotReadyError: It is still being built, or failed.
            ResourceInUseError: It lies on the built-in one of before a change of packages.
        """
        row, _ = await self._known(snapshot_id)
        return await export_image(
            await self.use(row.id),
            target,
            tag=tag,
            name=row.name,
            created_at=row.created_at,
            limiter=self._files.limiter,
        )

    # -- what hosts ask for ------------------------------------------------------------------------------------------

    async def host_snapshot(self) -> Snapshot:
        """The built-in snapshot of this machine as it is now, made where there is none (some tenths of a second).

        Raises:
            ResourceInUseError: Packages changed while sandboxes of an older version exist; delete those first.
            EngineUnavailableError: This machine's layout does not allow it.
        """
        async with self._making_host:
            current = await self._files.blocking(fingerprint)
            known = [r for r, _ in self._ready.values() if r.kind == "host" and r.fingerprint == current]
            for row in known:
                with contextlib.suppress(ResourceNotFoundError):
                    return (await self._store.find_snapshot(row.id)).public
                del self._ready[row.id]  # Another process deleted it.
            found, old = None, []
            for row in await self._store.snapshots_where(kind="host", status="ready"):
                if row.fingerprint == current:
                    found = row
                elif users := await self._store.users_of_snapshot(row.id):
                    raise _changed_packages(users)
                else:
                    old.append(row)
            if found is None:
                found = await self._make_host(current)
            for row in old:
                await self._replace_host(row, found)
            self._remember(found)
            return found.public

    async def prepare(self, snapshot_id: str) -> None:
        """Make the built-in snapshot that a capture lies on anew where packages changed; errors are :meth:`use`'s.

        Before a sandbox is recorded, which from then on counts as one that has those layers.
        """
        row, content = await self._known(snapshot_id)
        if row.base_id is not None:
            await self._all_layers(row, content)

    async def use(self, snapshot_id: str) -> SnapshotContent:
        """What to start a sandbox from. The sandbox is recorded first, so that nobody removes the layers meanwhile.

        Raises:
            ResourceNotFoundError: There is no such snapshot.
            SandboxNotReadyError: It is still being built, or failed.
            ResourceInUseError: It is the built-in one of before a change of packages.
        """
        row, content = await self._known(snapshot_id)
        if row.kind == "host" and row.fingerprint != await self._files.blocking(fingerprint):
            raise _changed_packages(await self._store.users_of_snapshot(row.id))
        return attrs.evolve(content, layers=await self._all_layers(row, content))

    async def _known(self, snapshot_id: str) -> tuple[SnapshotRow, SnapshotContent]:
        """A snapshot that is ready, and its own content without its base's. Errors are those of :meth:`use`."""
        key = canonical_id(snapshot_id) or snapshot_id
        if key not in self._ready:
            row = await self._store.find_snapshot(snapshot_id)
            if row.status != "ready":
                raise SandboxNotReadyError(f"Snapshot '{row.id}' is {row.status}, not ready")
            key = row.id
            self._remember(row)
        return self._ready[key]

    async def _all_layers(self, row: SnapshotRow, content: SnapshotContent, *, renew: bool = True) -> tuple[Layer, ...]:
        """Its layers and those of its bases, topmost first; with the built-in one made anew where packages changed.

        What was captured on the built-in snapshot lies on this machine's files as they are now: that is what overlayfs
        allows beneath layers that are not in use, and sandboxes that have the older ones in use forbid it.
        """
        layers = list(content.layers)
        while row.base_id is not None:
            try:
                row, content = await self._known(row.base_id)
            except ResourceNotFoundError:
                # Another process has made the built-in one anew, and the captures lie on that one now.
                del self._ready[row.id]
                row, _ = await self._known(row.id)
                continue
            if row.kind == "host" and renew:
                row, content = await self._known((await self.host_snapshot()).id)
            layers += content.layers
        return tuple(layers)

    # -- the built-in snapshot ---------------------------------------------------------------------------------------

    def _remember(self, row: SnapshotRow) -> None:
        assert row.content is not None
        content = SnapshotContent.from_json(row.content, self._folder)
        config = row.run_config
        if config is not None:
            content = attrs.evolve(
                content,
                config=attrs.evolve(
                    content.config,
                    user=config.user or content.config.user,
                    work_dir=config.work_dir or content.config.work_dir,
                    env={**content.config.env, **(config.env_vars or {})},
                ),
            )
        self._ready[row.id] = (row, content)

    async def _replace_host(self, old: SnapshotRow, new: SnapshotRow) -> None:
        try:
            await self._store.replace_base(old.id, new.id)
        except ResourceInUseError as error:
            raise _changed_packages(error.used_by) from error
        except ResourceNotFoundError:
            return  # Another process was faster.
        with trio.CancelScope(shield=True):
            self._ready = {key: found for key, found in self._ready.items() if found[0].base_id != old.id}
            self._ready.pop(old.id, None)
            await self._discard(old)

    async def _make_host(self, current: str) -> SnapshotRow:
        row = await self._store.add_snapshot(
            name=HOST_NAME, kind="host", fs_capacity_bytes=DEFAULT_LIMITS.disk_bytes or 0, fingerprint=current
        )
        final = self._files.final(row.id)
        try:
            draft = await self._files.new_draft(row.id)
            content = await self._files.blocking(lambda: build_host(draft, final))
            await give_to_sandboxes(draft / "root", OWNERS)
            await give_to_sandboxes(draft / "usr")
            await self._files.blocking(lambda: draft.rename(final))
            return await self._store.finish_snapshot(row.id, content=content.to_json(self._folder))
        except BaseException:
            with trio.CancelScope(shield=True):
                with contextlib.suppress(ResourceNotFoundError):
                    await self._store.remove_snapshot(row.id)
                await self._discard(row)
            raise

    # -- builds ------------------------------------------------------------------------------------------------------

    async def _build(
        self, row: SnapshotRow, build: _Build, make: Callable[[], Awaitable[None]], timeout_s: float
    ) -> None:
        failure: SandboxClientError | None = None
        try:
            with build.scope:
                failure = await self._try(row, make, timeout_s)
        finally:
            with trio.CancelScope(shield=True):
                if failure is not None or build.scope.cancelled_caught or build.progress.phase != Phase.DONE:
                    try:
                        await self._discard_build(row)
                    except SandboxClientError as error:
                        failure = ResourceCreationError(
                            f"{failure or 'Given up'}; {error}", "snapshot", "SnapshotBuild"
                        )
                    await self._record_failure(row, failure)
                    build.report(attrs.evolve(build.progress, phase=Phase.FAILED))
                self._builds.pop(row.id, None)
                build.done.set()
                build.changed.set()

    async def _try(
        self, row: SnapshotRow, make: Callable[[], Awaitable[None]], timeout_s: float
    ) -> SandboxClientError | None:
        """Make it in its turn; what goes wrong is returned, for a build has nobody to raise to."""
        is_capture = row.kind == "capture"
        try:
            async with self._capture_turns if is_capture else self._turns:
                with trio.fail_after(timeout_s):
                    await make()
        except trio.TooSlowError:
            what, word = ("capture", "Capture") if is_capture else ("build", "ImagePull")
            return ResourceCreationError(f"The {what} took longer than {timeout_s:g}s", "snapshot", word)
        except SandboxClientError as error:
            return error
        except Exception as error:  # noqa: BLE001  one build's accident must not end the others
            return ResourceCreationError(f"{type(error).__name__}: {error}", "snapshot", "SnapshotBuild")
        return None

    async def _make_capture(
        self, row: SnapshotRow, build: _Build, source: CaptureSource, base: SnapshotRow, asked_bytes: int | None
    ) -> None:
        # What is captured is saved even where packages changed, and its sandbox could not be started again.
        _, content = await self._known(base.id)
        below = attrs.evolve(content, layers=await self._all_layers(base, content, renew=False))
        draft, final = await self._files.new_draft(row.id), self._files.final(row.id)
        tools = self._folder.parent / "tools"
        made = await CaptureBuilder(self._config, tools, draft, build.report, self._files.limiter).build(source, below)
        used_bytes = made.used_bytes + (0 if made.stands_alone else base.fs_used_bytes or 0)
        _check_capacity(asked_bytes, used_bytes)
        await self._files.blocking(lambda: draft.rename(final))
        layers = tuple(attrs.evolve(layer, path=final / layer.path) for layer in made.layers)
        await self._finish(
            row,
            content=SnapshotContent(layers, below.config).to_json(self._folder),
            fs_used_bytes=used_bytes,
            stands_alone=made.stands_alone,
        )
        paused_s = made.copied.paused_s
        _log.info(
            "snapshot %s of sandbox %s: %d files, %d bytes, %s",
            row.id,
            source.sandbox_id,
            made.copied.files,
            made.copied.used_bytes,
            "it was stopped" if paused_s is None else f"paused for {paused_s * 1000:.0f} ms",
            extra={"paused_s": paused_s},
        )
        build.report(Progress(Phase.DONE, used_bytes, used_bytes, paused_s))

    async def _finish(self, row: SnapshotRow, **facts: Any) -> None:
        try:
            await self._store.finish_snapshot(row.id, **facts)
        except ResourceNotFoundError as error:
            raise ResourceCreationError("The snapshot was deleted while it was made", "snapshot") from error

    async def _make_image(self, row: SnapshotRow, build: _Build, request: CreateSnapshot) -> None:
        draft, final = await self._files.new_draft(row.id), self._files.final(row.id)
        unpacked = _Unpacked(self._store, self._files, row.id)
        image = await ImageBuilder(self._config, draft, unpacked, build.report, self._files.limiter).build(request)
        _check_capacity(request.fs_capacity_bytes, image.used_bytes)
        layers = await self._files.blocking(lambda: image.settle(final))
        await self._finish(
            row,
            content=SnapshotContent(layers, image.config).to_json(self._folder),
            fs_used_bytes=image.used_bytes,
            image_digest=image.digest,
            layers_key=image.layers_key,
        )
        build.report(Progress(Phase.DONE, image.used_bytes, image.used_bytes))

    async def _record_failure(self, row: SnapshotRow, failure: SandboxClientError | None) -> None:
        with contextlib.suppress(ResourceNotFoundError):
            if failure is None:
                # Given up by its owner: there is nobody left to tell.
                await self._store.remove_snapshot(row.id)
            else:
                message = failure.args[0] if failure.args else str(failure)
                await self._store.fail_snapshot(row.id, message, getattr(failure, "error_type", None))
                await self._forget_failures()

    # -- files -------------------------------------------------------------------------------------------------------

    async def _clean(self) -> None:
        """Remove what builders left that died in the middle, folders without a record, and old failures."""
        await self._forget_failures()
        for row in await self._store.snapshots_where(status="building"):
            async with self._store.claim_owner(row.owner_id) as claimed:
                if claimed:
                    await self._discard_build(row)
                    with contextlib.suppress(ResourceNotFoundError):
                        await self._store.fail_snapshot(row.id, "The process that built it ended", "SnapshotBuild")
                    if not await self._store.sandboxes_of(row.owner_id):
                        await self._store.forget_owner(row.owner_id)
        # Folders before rows: a builder records its row before it makes its folder.
        folders = await self._files.found()
        rows = await self._store.snapshots_where()
        used = {row.files_id for row in rows if row.status != "failed"}
        used |= {row.id for row in rows if row.status == "building"}
        for snapshot_id in folders:
            if snapshot_id not in used:
                await self._files.discard(snapshot_id)

    async def _forget_failures(self) -> None:
        forgotten = (datetime.now(UTC) - _FAILURE_KEPT).isoformat()
        await self._store.forget_failed_snapshots(before=forgotten, keep=_FAILURES_KEPT)

    async def _discard(self, row: SnapshotRow) -> None:
        """Remove the files of a snapshot that is no longer recorded, but those that others have, too."""
        for files_id in await self._store.unused_files(dict.fromkeys((row.id, row.files_id))):
            await self._files.discard(files_id)

    async def _discard_build(self, row: SnapshotRow) -> None:
        """Remove what there is of a build that ends without a result, while it is still recorded as one."""
        files_ids = [row.id]
        with contextlib.suppress(ResourceNotFoundError):
            files_ids.append((await self._store.find_snapshot(row.id)).files_id)
        for files_id in await self._store.unused_files(dict.fromkeys(files_ids), besides=row.id):
            await self._files.discard(files_id)


def _check(name: str, fs_capacity_bytes: int | None) -> None:
    if not name or len(name) > _MAX_NAME or name == HOST_NAME:
        raise ValidationError(f"A snapshot's name has 1 to {_MAX_NAME} characters and is not '{HOST_NAME}'", "name")
    if fs_capacity_bytes is not None and fs_capacity_bytes <= 0:
        raise ValidationError("fs_capacity_bytes must be greater than 0", "fs_capacity_bytes")


def _check_capacity(asked_bytes: int | None, used_bytes: int) -> None:
    if asked_bytes is not None and asked_bytes < used_bytes:
        reason = f"fs_capacity_bytes of {asked_bytes} is less than the {used_bytes} bytes that it holds"
        raise ResourceCreationError(reason, "snapshot", "Capacity")


def _changed_packages(users: tuple[str, ...]) -> ResourceInUseError:
    names = ", ".join(users[:10]) or "none known"
    return ResourceInUseError(
        "The packages of this machine changed since its built-in snapshot was made, so sandboxes on it can no longer"
        f" be trusted to be whole. Delete its sandboxes ({names}), then create again.",
        "snapshot",
        users,
    )


@contextlib.asynccontextmanager
async def _nursery_that_cancels() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        finally:
            nursery.cancel_scope.cancel()
