"""The embedded transport: a host in this process, reached through its actors' memory channels."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Literal

import attrs
import httpx
import trio

from sandboxrt.client.transport.base import Attachment, Dialer, naming
from sandboxrt.client.transport.shared import Member, join_host
from sandboxrt.engine.base import Engine
from sandboxrt.gateway.local import LocalServices
from sandboxrt.host.config import HostConfig
from sandboxrt.host.host import Host
from sandboxrt.models import DownloadURL, IsolationReport, Registry, RegistryPage, ResourceStatus, Snapshot
from sandboxrt.protocol.exec import Execute, Reconnect
from sandboxrt.protocol.registries import CreateRegistry, ListRegistries, UpdateRegistry
from sandboxrt.protocol.rest import (
    CaptureSnapshot,
    CreateDownloadLink,
    CreateSandbox,
    CreateSnapshot,
    SandboxInfo,
    ServiceGrant,
    UpdateSandbox,
)
from sandboxrt.protocol.rest_wire import DEFAULT_IDLE_TTL_S

__all__ = ["HostConfig", "LocalTransport"]


@attrs.frozen
class LocalTransport:
    """Hands every call to the host as it is. Errors and cancellation are the host's."""

    _member: Member

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, config: HostConfig, engine: Engine | None = None, *, runtime_given: bool = False
    ) -> AsyncIterator[LocalTransport]:
        """A transport to this run's host for a state folder; what is created through it goes with it."""
        async with join_host(config, engine, runtime_given=runtime_given) as member:
            yield cls(member)

    @property
    def host(self) -> Host:
        """The host, which other clients may share."""
        return self._member.host

    @property
    def _services(self) -> LocalServices:
        return self._member.services

    @property
    def mode(self) -> Literal["embedded"]:
        """Which kind it is."""
        return "embedded"

    def with_headers(self, headers: Mapping[str, str] | None) -> LocalTransport:
        """This one: nobody reads headers here."""
        return self

    async def create_sandbox(self, request: CreateSandbox) -> SandboxInfo:
        """Make a sandbox; with a server's idle TTL where its creator named none, so that programs mean the same."""
        if request.idle_ttl_seconds is None:
            request = attrs.evolve(request, idle_ttl_seconds=DEFAULT_IDLE_TTL_S)
        info = await self.host.create_sandbox(request)
        await self._member.own(info.id)
        return info

    async def get_sandbox(self, name: str) -> SandboxInfo:
        """A sandbox by name or id."""
        return await self.host.get_sandbox(name)

    async def list_sandboxes(self, *, elsewhere: bool = False) -> list[SandboxInfo]:
        """Every sandbox of the host, and then those of others in its state folder where they are asked for."""
        found = await self.host.list_sandboxes()
        return found + await self.host.list_elsewhere() if elsewhere else found

    async def update_sandbox(self, name: str, request: UpdateSandbox) -> SandboxInfo:
        """Change a sandbox."""
        return await self.host.update_sandbox(name, request)

    async def delete_sandbox(self, name: str) -> None:
        """Delete a sandbox."""
        found = await self.host.get_sandbox(name)
        await self.host.delete_sandbox(found.id or name)
        self._member.disown(found.id)

    async def sandbox_status(self, name: str) -> ResourceStatus:
        """How far a sandbox is."""
        return await self.host.sandbox_status(name)

    async def wait_for_sandbox(self, name: str, timeout_s: float, poll_interval_s: float) -> SandboxInfo:
        """Wait until a sandbox is ready."""
        return await self.host.wait_for_sandbox(name, timeout_s, poll_interval_s)

    async def start_sandbox(self, name: str, timeout_s: float) -> SandboxInfo:
        """Make a stopped sandbox ready again."""
        return await self.host.start_sandbox(name, timeout_s)

    async def stop_sandbox(self, name: str) -> None:
        """End all that runs in a sandbox."""
        await self.host.stop_sandbox(name)

    async def renew_lease(self, name: str, seconds: int) -> None:
        """Say that the owner of a leased sandbox lives."""
        await self.host.renew_lease(name)

    async def create_snapshot(self, request: CreateSnapshot) -> Snapshot:
        """Begin to build a snapshot."""
        return await self.host.create_snapshot(request)

    async def capture_snapshot(self, name: str, request: CaptureSnapshot) -> Snapshot:
        """Begin to make a snapshot of a sandbox's files."""
        return await self.host.capture_snapshot(name, request)

    async def get_snapshot(self, snapshot_id: str) -> Snapshot:
        """A snapshot by id."""
        return await self.host.get_snapshot(snapshot_id)

    async def list_snapshots(self, name_contains: str | None, limit: int | None, offset: int | None) -> list[Snapshot]:
        """A page of snapshots."""
        return await self.host.list_snapshots(name_contains, limit, offset)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete a snapshot."""
        await self.host.delete_snapshot(snapshot_id)

    async def wait_for_snapshot(self, snapshot_id: str, timeout_s: float, poll_interval_s: float) -> Snapshot:
        """Wait until a snapshot is ready."""
        return await self.host.wait_for_snapshot(snapshot_id, timeout_s, poll_interval_s)

    async def create_registry(self, request: CreateRegistry) -> Registry:
        """Make a named registry."""
        return await self.host.registries.create(request)

    async def get_registry(self, name: str) -> Registry:
        """A named registry by name or id."""
        return await self.host.registries.get(name)

    async def list_registries(self, request: ListRegistries) -> RegistryPage:
        """A page of named registries."""
        return await self.host.registries.list(request)

    async def update_registry(self, name: str, change: UpdateRegistry) -> Registry:
        """Change a named registry."""
        return await self.host.registries.update(name, change)

    async def delete_registry(self, name: str) -> None:
        """Forget a named registry."""
        await self.host.registries.delete(name)

    async def attach(self, sandbox: SandboxInfo, first: Execute | Reconnect) -> Attachment:
        """Start a command or attach to one."""
        with naming(sandbox):
            return await self.host.attach(sandbox.id, first)

    @contextlib.asynccontextmanager
    async def tunnel(self, sandbox: SandboxInfo, port: int, max_reconnects: int) -> AsyncIterator[Dialer]:
        """A way to a port inside: nothing lies between."""
        with naming(sandbox):
            (await self.host.find(sandbox.id)).require_ready()
        yield _LocalDialer(self.host, sandbox.id, port)

    async def read_file(self, sandbox: SandboxInfo, path: str) -> bytes:
        """A file's content."""
        with naming(sandbox):
            return await self.host.read_file(sandbox.id, path)

    async def write_file(self, sandbox: SandboxInfo, path: str, content: AsyncIterator[bytes]) -> None:
        """Put a file in place."""
        with naming(sandbox):
            await self.host.write_file(sandbox.id, path, content)

    async def service_url(self, name: str, port: int, expires_in_seconds: int) -> ServiceGrant:
        """The right to talk to a service, through a loopback port of this process."""
        found = await self.host.get_sandbox(name)
        return await (await self._services.links()).service(found.id, "", port, expires_in_seconds)

    async def service_connections(self) -> httpx.AsyncBaseTransport:
        """What carries requests to services."""
        return await self._services.connections()

    async def download_url(self, name: str, request: CreateDownloadLink) -> DownloadURL:
        """A link to a file, likewise."""
        found = await self.host.get_sandbox(name)
        return await (await self._services.links()).download(found.id, "", request)

    async def isolation(self, sandbox: SandboxInfo) -> IsolationReport:
        """What isolation a sandbox really has."""
        with naming(sandbox):
            return await self.host.isolation(sandbox.id)


@attrs.frozen
class _LocalDialer:
    host: Host
    sandbox_id: str
    port: int

    async def dial(self) -> trio.abc.HalfCloseableStream:
        return await self.host.connect(self.sandbox_id, self.port)
