"""What the client needs from the other side, embedded or remote: the seam that ``local.py`` and ``http.py`` fill."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Literal, Protocol

import httpx
import trio

from sandboxrt.errors import ResourceNotFoundError
from sandboxrt.models import DownloadURL, IsolationReport, Registry, RegistryPage, ResourceStatus, Snapshot
from sandboxrt.protocol.exec import ClientFrame, Execute, Reconnect, ServerFrame
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

__all__ = ["Attachment", "Dialer", "Transport", "naming"]


@contextmanager
def naming(sandbox: SandboxInfo) -> Iterator[None]:
    """Errors that come out of the block have the sandbox's name where its host has its id."""
    try:
        yield
    except ResourceNotFoundError as error:
        if error.resource_type == "sandbox" and sandbox.id and error.args:
            error.args = (str(error.args[0]).replace(sandbox.id, sandbox.name), *error.args[1:])
        raise


class Attachment(Protocol):
    """One attachment to one command: frames out, frames in, in order. Closing it detaches."""

    async def send(self, frame: ClientFrame) -> None:
        """Send a frame after the first one.

        Raises:
            SandboxConnectionError: The other side is gone.
        """
        ...

    async def receive(self) -> ServerFrame:
        """The next frame. ``Started`` or ``ErrorFrame`` first; nothing after ``Exit`` or ``ErrorFrame``.

        Raises:
            trio.EndOfChannel: After the last frame.
            SandboxConnectionError: The other side went away before the last frame.
        """
        ...

    async def aclose(self) -> None:
        """Detach. Idempotent."""
        ...


class Dialer(Protocol):
    """An open way into one sandbox, over which ports inside are reached."""

    async def dial(self) -> trio.abc.HalfCloseableStream:
        """A connection to the port; the caller closes it.

        Raises:
            TunnelConnectionRefusedError: Nothing listens there.
            TunnelPortNotAllowedError: The other side's rules exclude it.
            TunnelUnsupportedVersionError: The other side speaks another version of the protocol.
            TunnelError: There is no way just now.
            SandboxClientError: The sandbox is not there, or not ready.

        Cancellation: atomic.
        """
        ...


class Transport(Protocol):
    """The control plane and the data plane of one host. Every method raises the errors of ``sandboxrt.errors``.

    How long a call may take is its caller's to say: limits are in the requests, or the caller's cancel scopes. A
    transport adds one of its own only where the user configured one (control calls to a server), and otherwise notices
    peers that stand still or are gone, never ones that take long.
    """

    @property
    def mode(self) -> Literal["embedded", "remote"]:
        """Which kind it is."""
        ...

    def with_headers(self, headers: Mapping[str, str] | None) -> Transport:
        """The same with headers of one call's own, for a server."""
        ...

    async def create_sandbox(self, request: CreateSandbox) -> SandboxInfo:
        """Make a sandbox, ready when it returns unless the request does not wait."""
        ...

    async def get_sandbox(self, name: str) -> SandboxInfo:
        """A sandbox by name or id."""
        ...

    async def list_sandboxes(self, *, elsewhere: bool = False) -> list[SandboxInfo]:
        """Every sandbox that can be used; with ``elsewhere`` also those that only another process can use."""
        ...

    async def update_sandbox(self, name: str, request: UpdateSandbox) -> SandboxInfo:
        """Change a sandbox; what it is then."""
        ...

    async def delete_sandbox(self, name: str) -> None:
        """Delete a sandbox and everything in it."""
        ...

    async def sandbox_status(self, name: str) -> ResourceStatus:
        """How far a sandbox is."""
        ...

    async def wait_for_sandbox(self, name: str, timeout_s: float, poll_interval_s: float) -> SandboxInfo:
        """Wait until a sandbox is ready."""
        ...

    async def start_sandbox(self, name: str, timeout_s: float) -> SandboxInfo:
        """Make a stopped sandbox ready again, and wait for that."""
        ...

    async def stop_sandbox(self, name: str) -> None:
        """End all that runs in a sandbox; its files stay."""
        ...

    async def renew_lease(self, name: str, seconds: int) -> None:
        """Say that the owner of a leased sandbox lives."""
        ...

    async def create_snapshot(self, request: CreateSnapshot) -> Snapshot:
        """Begin to build a snapshot."""
        ...

    async def capture_snapshot(self, name: str, request: CaptureSnapshot) -> Snapshot:
        """Begin to make a snapshot of a sandbox's files."""
        ...

    async def get_snapshot(self, snapshot_id: str) -> Snapshot:
        """A snapshot by id."""
        ...

    async def list_snapshots(self, name_contains: str | None, limit: int | None, offset: int | None) -> list[Snapshot]:
        """A page of snapshots, newest first."""
        ...

    async def create_registry(self, request: CreateRegistry) -> Registry:
        """Make a named registry."""
        ...

    async def get_registry(self, name: str) -> Registry:
        """A named registry by name or id."""
        ...

    async def list_registries(self, request: ListRegistries) -> RegistryPage:
        """A page of named registries, newest first."""
        ...

    async def update_registry(self, name: str, change: UpdateRegistry) -> Registry:
        """Change a named registry; what it is then."""
        ...

    async def delete_registry(self, name: str) -> None:
        """Forget a named registry."""
        ...

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete a snapshot."""
        ...

    async def wait_for_snapshot(self, snapshot_id: str, timeout_s: float, poll_interval_s: float) -> Snapshot:
        """Wait until a snapshot is ready."""
        ...

    async def attach(self, sandbox: SandboxInfo, first: Execute | Reconnect) -> Attachment:
        """Start a command or attach to one."""
        ...

    def tunnel(self, sandbox: SandboxInfo, port: int, max_reconnects: int) -> AbstractAsyncContextManager[Dialer]:
        """A way to a port inside, for the length of the block; over a network it is made anew when it breaks.

        Raises (on entering):
            ResourceNotFoundError: The sandbox is gone.
            SandboxNotReadyError: It is not ready.
            SandboxConnectionError: It cannot be reached.
        """
        ...

    async def read_file(self, sandbox: SandboxInfo, path: str) -> bytes:
        """The content of a regular file."""
        ...

    async def write_file(self, sandbox: SandboxInfo, path: str, content: AsyncIterator[bytes]) -> None:
        """Put a file in place at once, its folders made."""
        ...

    async def service_url(self, name: str, port: int, expires_in_seconds: int) -> ServiceGrant:
        """The right to talk to a service in a sandbox."""
        ...

    async def service_connections(self) -> httpx.AsyncBaseTransport:
        """What carries requests to services, without any credentials. Closed with this transport, not before."""
        ...

    async def download_url(self, name: str, request: CreateDownloadLink) -> DownloadURL:
        """A link to a file in a sandbox."""
        ...

    async def isolation(self, sandbox: SandboxInfo) -> IsolationReport:
        """What isolation that sandbox really has."""
        ...
