"""The client on trio: sandboxes and snapshots, owned by an ``async with`` block."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import attrs
import trio

from sandboxrt.client.captures import capture_and_wait
from sandboxrt.client.config import RemoteConfig, choose_mode, remote_config
from sandboxrt.client.context import require_trio
from sandboxrt.client.creation import Creator, check_ttl
from sandboxrt.client.leases import LEASE_S, LeaseKeeper
from sandboxrt.client.owner import Owner
from sandboxrt.client.registries import AsyncRegistries
from sandboxrt.client.sandbox import AsyncSandbox, AsyncSandboxCreation
from sandboxrt.client.service import AsyncServiceURL
from sandboxrt.client.service_calls import download_request, open_service
from sandboxrt.client.transport.base import Transport
from sandboxrt.client.transport.http import HttpTransport
from sandboxrt.client.transport.local import HostConfig, LocalTransport
from sandboxrt.engine.base import Engine
from sandboxrt.errors import ClientClosedError
from sandboxrt.models import (
    DEFAULT_LIMITS,
    DEFAULT_REQUIRE,
    DownloadURL,
    Isolation,
    Limits,
    ResourceStatus,
    RunConfig,
    Snapshot,
)
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSandbox, CreateSnapshot, UpdateSandbox

__all__ = ["AsyncSandboxClient"]


class AsyncSandboxClient:
    """Creates sandboxes and looks after them. Use it as ``async with AsyncSandboxClient() as client``.

    Embedded, the host runs inside this process, and what this client created ends with the block, however it ends,
    whoever uses it besides. Clients that use the same ``state_dir`` share one host and see each other's sandboxes:
    those of one trio run, and in each process all that do not run on trio. With a server, sandboxes of
    ``create_sandbox`` stay until they are deleted or expire; leaving the block detaches from every command.

    Args:
        api_endpoint: The base URL of a server's control plane, e.g. ``http://127.0.0.1:8080/v2/sandboxes``.
        timeout: Seconds for control calls to a server; 0 = none.
        api_key: A server's key.
        max_retries: How often a call is sent again that a server refused for now (429, 502, 503, 504), or that could
            not be connected.
        headers: Sent with every request and WebSocket to a server.
        mode: ``"embedded"`` whatever the environment says; by default an endpoint or a key, given here or in
            ``LANGSMITH_ENDPOINT``, ``LANGCHAIN_ENDPOINT``, ``LANGSMITH_API_KEY`` or ``LANGCHAIN_API_KEY``, mean
            ``"remote"``.
        state_dir: Folder for snapshots and sandboxes; several processes may share it. Embedded only, as what follows.
        runtime: OCI runtime, by name or path; ``crun`` by default, or what the host that is shared uses.
        limits: What a sandbox may use when its creation names no limits.
        require: Isolation without which no sandbox is created.
        allow_unenforced_limits: Accept limits that this host cannot enforce.
        engine: What runs sandboxes instead of an OCI runtime, e.g. ``sandboxrt.testing``'s fake.

    Raises:
        ValueError: The endpoint is no HTTP URL, or an argument is of no use together with a server; on entering,
            that another client of the same ``state_dir`` uses another ``runtime`` or ``engine``.

    Cancellation: Leaving the block is shielded and bounded; embedded, it deletes every sandbox that it created.

    Source: protocol.md §1.
    """

    def __init__(
        self,
        *,
        api_endpoint: str | None = None,
        timeout: float = 10.0,
        api_key: str | None = None,
        max_retries: int = 3,
        headers: Mapping[str, str] | None = None,
        mode: Literal["embedded", "remote"] | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        runtime: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
        require: frozenset[Isolation] = DEFAULT_REQUIRE,
        allow_unenforced_limits: bool = False,
        engine: Engine | None = None,
    ) -> None:
        self._mode = choose_mode(mode, api_endpoint, api_key)
        if self._mode == "remote":
            self._remote: RemoteConfig | None = remote_config(
                api_endpoint=api_endpoint, api_key=api_key, headers=headers, timeout=timeout, max_retries=max_retries
            )
            _refuse_local(state_dir=state_dir, runtime=runtime, engine=engine)
        else:
            self._remote = None
        # The host may be shared: what is this client's own goes with each of its requests.
        config = HostConfig()
        self._config = attrs.evolve(
            config,
            state_dir=config.state_dir if state_dir is None else Path(state_dir),
            runtime=runtime or config.runtime,
        )
        self._runtime_given = runtime is not None
        self._creator = Creator(
            limits=limits,
            require=require,
            allow_unenforced_limits=allow_unenforced_limits,
            remote=self._remote is not None,
        )
        self._engine = engine
        self._stack: contextlib.AsyncExitStack | None = None
        self._owner: Owner | None = None

    def __repr__(self) -> str:
        state = "open" if self._owner is not None else "closed"
        where = f"embedded in {self._config.state_dir}" if self._remote is None else f"of {self._remote.base_url}"
        return f"<{type(self).__name__} {where}, {state}>"

    @property
    def mode(self) -> Literal["embedded", "remote"]:
        """Where sandboxes run: in this process, or on a server."""
        return self._mode

    @property
    def registries(self) -> AsyncRegistries:
        """Private registries of images, by names of one's own: make, list, change and delete them."""
        return AsyncRegistries(self._transport)

    # -- sandboxes ---------------------------------------------------------------------------------------------------

    def sandbox(
        self,
        snapshot_id: str | None = None,
        *,
        snapshot_name: str | None = None,
        name: str | None = None,
        timeout: float = 30,
        ttl_seconds: int | None = None,
        idle_ttl_seconds: int | None = None,
        delete_after_stop_seconds: int | None = None,
        vcpus: float | None = None,
        mem_bytes: int | None = None,
        fs_capacity_bytes: int | None = None,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncSandboxCreation:
        """A sandbox that is deleted when its block ends: ``async with client.sandbox() as sb``.

        The arguments and errors are those of :meth:`create_sandbox`.
        """
        request = self._creator.request(
            snapshot_id,
            snapshot_name=snapshot_name,
            name=name,
            timeout=timeout,
            ttl_seconds=ttl_seconds,
            idle_ttl_seconds=idle_ttl_seconds,
            delete_after_stop_seconds=delete_after_stop_seconds,
            limits=limits,
            vcpus=vcpus,
            mem_bytes=mem_bytes,
            fs_capacity_bytes=fs_capacity_bytes,
            env=env,
        )
        return AsyncSandboxCreation(lambda: self._create(request, headers, auto_delete=True))

    async def create_sandbox(
        self,
        snapshot_id: str | None = None,
        *,
        snapshot_name: str | None = None,
        name: str | None = None,
        timeout: float = 30,
        wait_for_ready: bool = True,
        ttl_seconds: int | None = None,
        idle_ttl_seconds: int | None = None,
        delete_after_stop_seconds: int | None = None,
        vcpus: float | None = None,
        mem_bytes: int | None = None,
        fs_capacity_bytes: int | None = None,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncSandbox:
        """Create a sandbox to keep until it is deleted or the client closes.

        Args:
            snapshot_id: What to start from; with ``snapshot_name`` left out too, the built-in ``host`` snapshot.
            snapshot_name: The newest ready snapshot of that name.
            name: Unique on the host; made up if left out.
            timeout: Seconds until creation is given up.
            wait_for_ready: ``False`` returns at once, with status ``provisioning``.
            ttl_seconds: Longest lifetime, a multiple of 60; 0 = none.
            idle_ttl_seconds: Lifetime without activity, likewise; 600 where left out, 0 disables it.
            delete_after_stop_seconds: Stop it when it is idle instead of deleting it, and delete it so long after a
                stop; likewise a multiple of 60, 0 = keep it stopped.
            vcpus: CPU limit; overrides ``limits``.
            mem_bytes: Memory limit in bytes; overrides ``limits``.
            fs_capacity_bytes: Disk size in bytes; overrides ``limits``. With neither, the snapshot's own size.
            env: Environment of its commands.
            limits: Everything that it may use.
            headers: For a server.

        Raises:
            ValueError: An argument, or two together, make no sense; the message names them.
            IsolationError: This host gives less isolation than required.
            ResourceCreationError: It could not be started; the message has the reason.
            ResourceNotFoundError: There is no such snapshot.
            ResourceTimeoutError: It was not ready in time.

        Cancellation: atomic; what had been made is deleted, shielded and bounded.

        Source: protocol.md §2.3.
        """
        request = self._creator.request(
            snapshot_id,
            snapshot_name=snapshot_name,
            name=name,
            timeout=timeout,
            wait_for_ready=wait_for_ready,
            ttl_seconds=ttl_seconds,
            idle_ttl_seconds=idle_ttl_seconds,
            delete_after_stop_seconds=delete_after_stop_seconds,
            limits=limits,
            vcpus=vcpus,
            mem_bytes=mem_bytes,
            fs_capacity_bytes=fs_capacity_bytes,
            env=env,
        )
        return await self._create(request, headers, auto_delete=False)

    async def get_sandbox(self, name: str, *, headers: Mapping[str, str] | None = None) -> AsyncSandbox:
        """An existing sandbox by name.

        Raises:
            ResourceNotFoundError: There is none.
            ResourceInUseError: Embedded: another process has it (``used_by``), or another event loop of this one.
        """
        owner = self._open_owner()
        return AsyncSandbox(owner, await owner.transport.with_headers(headers).get_sandbox(name), auto_delete=False)

    async def get_sandbox_status(self, name: str, *, headers: Mapping[str, str] | None = None) -> ResourceStatus:
        """How far a sandbox is. Raises :class:`~sandboxrt.errors.ResourceNotFoundError`."""
        return await self._transport(headers).sandbox_status(name)

    async def wait_for_sandbox(
        self,
        name: str,
        *,
        timeout: float = 120,
        poll_interval: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncSandbox:
        """Wait until a sandbox is ready.

        Raises:
            ResourceCreationError: It failed; the message says why.
            ResourceTimeoutError: It was not ready after ``timeout`` seconds.
        """
        owner = self._open_owner()
        info = await owner.transport.with_headers(headers).wait_for_sandbox(name, timeout, poll_interval)
        return AsyncSandbox(owner, info, auto_delete=False)

    async def list_sandboxes(
        self, *, elsewhere: bool = False, headers: Mapping[str, str] | None = None
    ) -> list[AsyncSandbox]:
        """Every sandbox; of a server page by page, 2,000 pages at most.

        Embedded: those of all clients that share this one's host.

        Args:
            elsewhere: Embedded: then also those of other processes that use the same ``state_dir``. They have an
                ``owner``, and can only be used there.
            headers: For a server.

        Raises:
            SandboxAPIError: The server's pages do not come to an end, or repeat themselves.
        """
        owner = self._open_owner()
        return [
            AsyncSandbox(owner, info, auto_delete=False)
            for info in await owner.transport.with_headers(headers).list_sandboxes(elsewhere=elsewhere)
        ]

    async def update_sandbox(
        self,
        name: str,
        *,
        new_name: str | None = None,
        ttl_seconds: int | None = None,
        idle_ttl_seconds: int | None = None,
        delete_after_stop_seconds: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncSandbox:
        """Rename a sandbox or change its lifetimes; ``None`` leaves as is, a TTL of 0 disables it.

        Raises:
            ResourceNameConflictError: The new name is taken.
        """
        check_ttl("ttl_seconds", ttl_seconds)
        check_ttl("idle_ttl_seconds", idle_ttl_seconds)
        check_ttl("delete_after_stop_seconds", delete_after_stop_seconds)
        owner = self._open_owner()
        request = UpdateSandbox(
            new_name=new_name,
            ttl_seconds=ttl_seconds,
            idle_ttl_seconds=idle_ttl_seconds,
            delete_after_stop_seconds=delete_after_stop_seconds,
        )
        return AsyncSandbox(
            owner, await owner.transport.with_headers(headers).update_sandbox(name, request), auto_delete=False
        )

    async def delete_sandbox(self, name: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Delete a sandbox and everything in it. Raises :class:`~sandboxrt.errors.ResourceNotFoundError`."""
        await self._transport(headers).delete_sandbox(name)

    async def start_sandbox(
        self, name: str, *, timeout: float = 120, headers: Mapping[str, str] | None = None
    ) -> AsyncSandbox:
        """Start a stopped sandbox, its files as they were, and wait until it is ready. Idempotent.

        Raises:
            ResourceCreationError: It could not be started; the message says why, and the files are still there.
            ResourceTimeoutError: It was not ready after ``timeout`` seconds; it still becomes so.
            SandboxNotReadyError: It failed, or is being deleted.

        Source: protocol.md §2.4.
        """
        owner = self._open_owner()
        info = await owner.transport.with_headers(headers).start_sandbox(name, timeout)
        return AsyncSandbox(owner, info, auto_delete=False)

    async def stop_sandbox(self, name: str, *, headers: Mapping[str, str] | None = None) -> None:
        """End all that runs in a sandbox, politely (SIGTERM, a few seconds, SIGKILL); its files stay. Idempotent.

        Raises:
            SandboxNotReadyError: It is neither ready nor stopped.

        Source: protocol.md §2.4.
        """
        await self._transport(headers).stop_sandbox(name)

    async def service(
        self, name: str, port: int, *, expires_in_seconds: int = 600, headers: Mapping[str, str] | None = None
    ) -> AsyncServiceURL:
        """An HTTP service on a port inside a sandbox, reached without a tunnel.

        Args:
            name: The sandbox's name.
            port: The service's port, 1 to 65535. Nothing need listen there yet.
            expires_in_seconds: Life of each token, 1 to 86400; new ones are fetched in time.
            headers: For a server.

        Raises:
            ValueError: A number out of range.
            ResourceNotFoundError: There is no such sandbox.

        Source: protocol.md §2.6, §6.
        """
        return await open_service(self._open_owner(), name, port, expires_in_seconds, headers)

    async def generate_download_url(
        self,
        name: str,
        path: str,
        *,
        expires_in_seconds: int | None = None,
        content_type: str | None = None,
        content_disposition: Literal["attachment", "inline"] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> DownloadURL:
        """A link to a file in a sandbox: whoever has it gets the file as it is then, without a key.

        Args:
            name: The sandbox's name.
            path: The file; it need not be there yet.
            expires_in_seconds: How long the link is good; ``None`` = as long as the sandbox is there.
            content_type: What the file is; guessed from its name where left out.
            content_disposition: Whether a browser saves it, which it does where this is left out, or shows it.
            headers: For a server.

        Raises:
            ValueError: An argument that cannot be.
            ResourceNotFoundError: There is no such sandbox.

        Source: protocol.md §2.7.
        """
        request = download_request(path, expires_in_seconds, content_type, content_disposition)
        return await self._transport(headers).download_url(name, request)

    # -- snapshots ---------------------------------------------------------------------------------------------------

    async def create_snapshot(
        self,
        name: str,
        docker_image: str,
        fs_capacity_bytes: int,
        *,
        registry_id: str | None = None,
        registry_url: str | None = None,
        registry_username: str | None = None,
        registry_password: str | None = None,
        tls_verify: bool | None = None,
        timeout: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Build a snapshot from a container image, and wait until it is ready.

        Args:
            name: Its name.
            docker_image: ``python:3.12-slim``, ``registry.example/team/image:tag``, ``oci:DIR[:TAG]`` or
                ``docker-archive:FILE[:REF]``.
            fs_capacity_bytes: Disk size of its sandboxes where they name none.
            registry_id: One of :attr:`registries`, by its id: short names are of that registry, and its login is used
                for its own images, while another host's are refused.
            registry_url: A registry to take short names from, without a name of its own.
            registry_username: For a registry that asks.
            registry_password: For a registry that asks; never shown, never stored.
            tls_verify: ``False`` accepts a registry without TLS.
            timeout: Seconds to wait; the build goes on when they are over.
            headers: For a server.

        Raises:
            ResourceCreationError: It failed (``error_type`` is ``ImagePull`` where it was the image); the message has
                the tool's reason.
            ResourceNotFoundError: There is no registry of that id.
            ResourceTimeoutError: It was not ready in time; ``wait_for_snapshot`` waits on.
            ValidationError: An argument cannot be, or not together with another one.

        Source: protocol.md §2.5.
        """
        request = CreateSnapshot(
            name=name,
            docker_image=docker_image,
            fs_capacity_bytes=fs_capacity_bytes,
            registry_id=registry_id,
            registry_url=registry_url,
            registry_username=registry_username,
            registry_password=registry_password,
            tls_verify=tls_verify,
        )
        snapshot = await self._transport(headers).create_snapshot(request)
        return await self._transport(headers).wait_for_snapshot(snapshot.id, timeout, 2.0)

    async def capture_snapshot(
        self,
        sandbox_name: str,
        name: str,
        *,
        tag: str | None = None,
        fs_capacity_bytes: int | None = None,
        run_config: RunConfig | None = None,
        timeout: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Make a snapshot of a sandbox's files, running or stopped, and wait until it is ready.

        A running sandbox stands still while its files are copied, so that they are as of one instant. Neither its
        processes nor ``/tmp`` are in the snapshot.

        Args:
            sandbox_name: Which.
            name: The snapshot's name.
            tag: ``name:tag`` means this snapshot from then on; ``latest`` if left out.
            fs_capacity_bytes: Disk size of sandboxes that are made from it; as the captured one's if left out.
            run_config: How commands run in those when nobody says otherwise.
            timeout: Seconds to wait; the capture goes on when they are over.
            headers: For a server.

        Raises:
            ResourceCreationError: It failed; the message says why (``error_type`` is ``DiskFull`` where the host was).
            ResourceNotFoundError: There is no such sandbox.
            ResourceTimeoutError: It was not ready in time; ``wait_for_snapshot`` waits on.
            SandboxNotReadyError: It is neither ready nor stopped, or it runs where nothing can be made to stand still
                (unprivileged hosts, gVisor): stop it first.

        Source: protocol.md §2.5.
        """
        request = CaptureSnapshot(
            name=name, tag=tag or "latest", fs_capacity_bytes=fs_capacity_bytes, run_config=run_config
        )
        return await capture_and_wait(self._transport(headers), sandbox_name, request, timeout)

    async def get_snapshot(self, snapshot_id: str, *, headers: Mapping[str, str] | None = None) -> Snapshot:
        """A snapshot by id. Raises :class:`~sandboxrt.errors.ResourceNotFoundError`."""
        return await self._transport(headers).get_snapshot(snapshot_id)

    async def list_snapshots(
        self,
        *,
        name_contains: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[Snapshot]:
        """A page of snapshots, newest first.

        Args:
            name_contains: Part of the name, whatever its case.
            limit: 1 to 500; 50 if left out.
            offset: How many to pass over.
            headers: For a server.

        Raises:
            ValidationError: ``limit`` or ``offset`` is out of range.
        """
        return await self._transport(headers).list_snapshots(name_contains, limit, offset)

    async def delete_snapshot(self, snapshot_id: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Delete a snapshot.

        Raises:
            ResourceInUseError: Sandboxes use it, or snapshots that were captured from those; ``used_by`` names them.
            ResourceNotFoundError: There is no such snapshot.
        """
        await self._transport(headers).delete_snapshot(snapshot_id)

    async def wait_for_snapshot(
        self,
        snapshot_id: str,
        *,
        timeout: float = 300,
        poll_interval: float = 2.0,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Wait until a snapshot is ready. Raises as :meth:`create_snapshot`."""
        return await self._transport(headers).wait_for_snapshot(snapshot_id, timeout, poll_interval)

    # -- lifetime ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._owner is not None:
            raise RuntimeError("this client is open already; make another one")
        require_trio()
        async with contextlib.AsyncExitStack() as stack:
            transport = await stack.enter_async_context(self._open_transport())
            nursery = await stack.enter_async_context(trio.open_nursery())
            owner = Owner(transport, nursery)
            stack.callback(_end, owner, nursery)
            self._stack = stack.pop_all()
        self._owner = owner
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._stack is not None
        stack, self._stack, self._owner = self._stack, None, None
        try:
            await stack.__aexit__(exc_type, exc, traceback)
        except BaseExceptionGroup as group:
            _raise_plain(group)

    def _open_transport(self) -> contextlib.AbstractAsyncContextManager[Transport]:
        if self._remote is not None:
            return HttpTransport.open(self._remote)
        return LocalTransport.open(self._config, self._engine, runtime_given=self._runtime_given)

    def _transport(self, headers: Mapping[str, str] | None) -> Transport:
        return self._open_owner().transport.with_headers(headers)

    def _open_owner(self) -> Owner:
        if self._owner is None:
            raise ClientClosedError(
                "the client is not open; use it inside `async with AsyncSandboxClient() as client:`"
            )
        return self._owner

    async def _create(
        self, request: CreateSandbox, headers: Mapping[str, str] | None, *, auto_delete: bool
    ) -> AsyncSandbox:
        owner = self._open_owner()
        if auto_delete and self._remote is not None:
            request = attrs.evolve(request, lease_seconds=LEASE_S)
        transport = owner.transport.with_headers(headers)
        info = await transport.create_sandbox(request)
        keeper = None
        if request.lease_seconds is not None and info.lease_seconds:
            keeper = LeaseKeeper(transport, info.id, info.lease_seconds)
            owner.start(keeper.run)
        return AsyncSandbox(owner, info, auto_delete=auto_delete, created=True, lease=keeper)


def _end(owner: Owner, nursery: trio.Nursery) -> None:
    owner.close()
    nursery.cancel_scope.cancel()


def _raise_plain(group: BaseExceptionGroup[Any]) -> NoReturn:
    """Raise the one error in a group by itself; nobody catches groups of one."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    raise error


def _refuse_local(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f'{name}= is for sandboxes of this machine; with a server leave it out, or pass mode="embedded"'
            )
