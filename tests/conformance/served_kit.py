"""A served host, and our client's transport to it as a driver of the conformance suites."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs

from sandboxrt.client.config import RemoteConfig
from sandboxrt.client.transport.http import HttpTransport
from sandboxrt.engine.base import Engine
from sandboxrt.host.command import CommandSettings
from sandboxrt.host.config import HostConfig
from sandboxrt.host.ports import HostState
from sandboxrt.models import Registry, RegistryPage, ResourceStatus, Snapshot
from sandboxrt.protocol.exec import Execute, Reconnect
from sandboxrt.protocol.registries import CreateRegistry, ListRegistries, UpdateRegistry
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSandbox, CreateSnapshot, SandboxInfo, UpdateSandbox
from sandboxrt.server.app import AppSettings
from sandboxrt.server.guarded import ConnectionLimits
from sandboxrt.server.serve import RunningServer, ServerSettings, open_server
from sandboxrt.store import KeyRecords, Store
from sandboxrt.testing.conformance import Link


@attrs.frozen
class ServedRegistries:
    """Named registries, over the wire."""

    transport: HttpTransport

    async def create(self, request: CreateRegistry) -> Registry:
        return await self.transport.create_registry(request)

    async def get(self, name_or_id: str) -> Registry:
        return await self.transport.get_registry(name_or_id)

    async def list(self, request: ListRegistries) -> RegistryPage:
        return await self.transport.list_registries(request)

    async def update(self, name_or_id: str, change: UpdateRegistry) -> Registry:
        return await self.transport.update_registry(name_or_id, change)

    async def delete(self, name_or_id: str) -> None:
        await self.transport.delete_registry(name_or_id)


@attrs.frozen
class ServedDriver:
    """Sandboxes by name, over the wire."""

    transport: HttpTransport

    @property
    def registries(self) -> ServedRegistries:
        return ServedRegistries(self.transport)

    async def create_snapshot(self, request: CreateSnapshot) -> Snapshot:
        return await self.transport.create_snapshot(request)

    async def create_sandbox(self, request: CreateSandbox) -> SandboxInfo:
        # A repeated create is one with the same name and key; the cases know names only.
        mine = attrs.evolve(request, idempotency_key=f"key of {request.name}", name_is_ours=True)
        return await self.transport.create_sandbox(mine)

    async def get_sandbox(self, name: str) -> SandboxInfo:
        return await self.transport.get_sandbox(name)

    async def list_sandboxes(self) -> list[SandboxInfo]:
        return await self.transport.list_sandboxes()

    async def update_sandbox(self, name: str, request: UpdateSandbox) -> SandboxInfo:
        return await self.transport.update_sandbox(name, request)

    async def delete_sandbox(self, name: str) -> None:
        await self.transport.delete_sandbox(name)

    async def start_sandbox(self, name: str, timeout_s: float) -> SandboxInfo:
        return await self.transport.start_sandbox(name, timeout_s)

    async def stop_sandbox(self, name: str) -> None:
        await self.transport.stop_sandbox(name)

    async def capture_snapshot(self, name: str, request: CaptureSnapshot) -> Snapshot:
        return await self.transport.capture_snapshot(name, request)

    async def wait_for_snapshot(self, snapshot_id: str, timeout_s: float, poll_interval_s: float) -> Snapshot:
        return await self.transport.wait_for_snapshot(snapshot_id, timeout_s, poll_interval_s)

    async def get_snapshot(self, reference: str) -> Snapshot:
        return await self.transport.get_snapshot(reference)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await self.transport.delete_snapshot(snapshot_id)

    async def sandbox_status(self, name: str) -> ResourceStatus:
        return await self.transport.sandbox_status(name)

    async def wait_for_sandbox(self, name: str, timeout_s: float, poll_interval_s: float) -> SandboxInfo:
        return await self.transport.wait_for_sandbox(name, timeout_s, poll_interval_s)

    async def attach(self, name: str, first: Execute | Reconnect) -> Link:
        return await self.transport.attach(await self.transport.get_sandbox(name), first)

    async def read_file(self, name: str, path: str) -> bytes:
        return await self.transport.read_file(await self.transport.get_sandbox(name), path)

    async def write_file(self, name: str, path: str, content: AsyncIterator[bytes]) -> None:
        await self.transport.write_file(await self.transport.get_sandbox(name), path, content)


@asynccontextmanager
async def served(
    state_dir: Path,
    *,
    engine: Engine | None = None,
    state: Callable[[], HostState] | None = None,
    public_url: str | None = None,
) -> AsyncIterator[tuple[RunningServer, RemoteConfig]]:
    """A server with a key, and how a client of it is configured."""
    settings = ServerSettings(
        port=0,
        public_url=public_url,
        host=HostConfig(state_dir=state_dir, command=CommandSettings(term_grace_s=0.3)),
        app=AppSettings(public_url="", default_snapshot="host"),
        connections=ConnectionLimits(drain_s=1.0, linger_s=1.0),
    )
    async with AsyncExitStack() as stack:
        keys = KeyRecords(await stack.enter_async_context(Store.open(state_dir)))
        key = await keys.create("acme")
        made = state() if state is not None else None
        server = await stack.enter_async_context(open_server(settings, engine=engine, state=made))
        yield server, RemoteConfig(base_url=f"{server.url}/v2/sandboxes", api_key=key.secret, timeout_s=10)
