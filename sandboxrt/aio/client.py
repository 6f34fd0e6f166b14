"""The classes of ``sandboxrt.client.client``, on asyncio.

Generated from sandboxrt/client/client.py by tools/gen_facades.py: do not edit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from sandboxrt.aio.registries import AsyncRegistries
from sandboxrt.aio.sandbox import AsyncSandbox, AsyncSandboxCreation
from sandboxrt.aio.service import AsyncServiceURL
from sandboxrt.bridge.loops import AsyncioClient
from sandboxrt.bridge.portal import Portal
from sandboxrt.client import client as _trio_client
from sandboxrt.engine.base import Engine
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

__all__ = ["AsyncSandboxClient"]


class AsyncSandboxClient(AsyncioClient[_trio_client.AsyncSandboxClient]):
    """Creates sandboxes and looks after them. Use it as ``async with AsyncSandboxClient() as client``.

    Embedded, the host runs inside this process, and what this client created ends with the block, however it ends,
    whoever uses it besides. Clients that use the same ``state_dir`` share one host and see each other's sandboxes:
    those of one trio run, and in each process all that do not run on trio. With a server, sandboxes of
    ``create_sandbox`` stay until they are deleted or expire; leaving the block detaches from every command.

    Works without ``async with`` too: its first use opens it, ``aclose`` or the end of the program closes it.

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
        self._inner = _trio_client.AsyncSandboxClient(
            api_endpoint=api_endpoint,
            timeout=timeout,
            api_key=api_key,
            max_retries=max_retries,
            headers=headers,
            mode=mode,
            state_dir=state_dir,
            runtime=runtime,
            limits=limits,
            require=require,
            allow_unenforced_limits=allow_unenforced_limits,
            engine=engine,
        )
        self._portal = Portal(self._inner)

    @property
    def mode(self) -> Literal["embedded", "remote"]:
        """Where sandboxes run: in this process, or on a server."""
        return self._inner.mode

    @property
    def registries(self) -> AsyncRegistries:
        """Private registries of images, by names of one's own: make, list, change and delete them."""
        return AsyncRegistries._of(self._inner.registries, self._portal)

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
        return AsyncSandboxCreation._of(
            self._inner.sandbox(
                snapshot_id,
                snapshot_name=snapshot_name,
                name=name,
                timeout=timeout,
                ttl_seconds=ttl_seconds,
                idle_ttl_seconds=idle_ttl_seconds,
                delete_after_stop_seconds=delete_after_stop_seconds,
                vcpus=vcpus,
                mem_bytes=mem_bytes,
                fs_capacity_bytes=fs_capacity_bytes,
                env=env,
                limits=limits,
                headers=headers,
            ),
            self._portal,
        )

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
        return AsyncSandbox._of(
            await self._call(
                lambda: self._inner.create_sandbox(
                    snapshot_id,
                    snapshot_name=snapshot_name,
                    name=name,
                    timeout=timeout,
                    wait_for_ready=wait_for_ready,
                    ttl_seconds=ttl_seconds,
                    idle_ttl_seconds=idle_ttl_seconds,
                    delete_after_stop_seconds=delete_after_stop_seconds,
                    vcpus=vcpus,
                    mem_bytes=mem_bytes,
                    fs_capacity_bytes=fs_capacity_bytes,
                    env=env,
                    limits=limits,
                    headers=headers,
                )
            ),
            self._portal,
        )

    async def get_sandbox(self, name: str, *, headers: Mapping[str, str] | None = None) -> AsyncSandbox:
        """An existing sandbox by name.

        Raises:
            ResourceNotFoundError: There is none.
            ResourceInUseError: Embedded: another process has it (``used_by``), or another event loop of this one.
        """
        return AsyncSandbox._of(await self._call(lambda: self._inner.get_sandbox(name, headers=headers)), self._portal)

    async def get_sandbox_status(self, name: str, *, headers: Mapping[str, str] | None = None) -> ResourceStatus:
        """How far a sandbox is. Raises :class:`~sandboxrt.errors.ResourceNotFoundError`."""
        return await self._call(lambda: self._inner.get_sandbox_status(name, headers=headers))

    async def wait_for_sandbox(
        self, name: str, *, timeout: float = 120, poll_interval: float = 1.0, headers: Mapping[str, str] | None = None
    ) -> AsyncSandbox:
        """Wait until a sandbox is ready.

        Raises:
            ResourceCreationError: It failed; the message says why.
            ResourceTimeoutError: It was not ready after ``timeout`` seconds.
        """
        return AsyncSandbox._of(
            await self._call(
                lambda: self._inner.wait_for_sandbox(
                    name, timeout=timeout, poll_interval=poll_interval, headers=headers
                )
            ),
            self._portal,
        )

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
        return [
            AsyncSandbox._of(each, self._portal)
            for each in await self._call(lambda: self._inner.list_sandboxes(elsewhere=elsewhere, headers=headers))
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
        return AsyncSandbox._of(
            await self._call(
                lambda: self._inner.update_sandbox(
                    name,
                    new_name=new_name,
                    ttl_seconds=ttl_seconds,
                    idle_ttl_seconds=idle_ttl_seconds,
                    delete_after_stop_seconds=delete_after_stop_seconds,
                    headers=headers,
                )
            ),
            self._portal,
        )

    async def delete_sandbox(self, name: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Delete a sandbox and everything in it. Raises :class:`~sandboxrt.errors.ResourceNotFoundError`."""
        await self._call(lambda: self._inner.delete_sandbox(name, headers=headers))

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
        return AsyncSandbox._of(
            await self._call(lambda: self._inner.start_sandbox(name, timeout=timeout, headers=headers)), self._portal
        )

    async def stop_sandbox(self, name: str, *, headers: Mapping[str, str] | None = None) -> None:
        """End all that runs in a sandbox, politely (SIGTERM, a few seconds, SIGKILL); its files stay. Idempotent.

        Raises:
            SandboxNotReadyError: It is neither ready nor stopped.

        Source: protocol.md §2.4.
        """
        await self._call(lambda: self._inner.stop_sandbox(name, headers=headers))

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
        return AsyncServiceURL._of(
            await self._call(
                lambda: self._inner.service(name, port, expires_in_seconds=expires_in_seconds, headers=headers)
            ),
            self._portal,
        )

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
        return await self._call(
            lambda: self._inner.generate_download_url(
                name,
                path,
                expires_in_seconds=expires_in_seconds,
                content_type=content_type,
                content_disposition=content_disposition,
                headers=headers,
            )
        )

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
        return await self._call(
            lambda: self._inner.create_snapshot(
                name,
                docker_image,
                fs_capacity_bytes,
                registry_id=registry_id,
                registry_url=registry_url,
                registry_username=registry_username,
                registry_password=registry_password,
                tls_verify=tls_verify,
                timeout=timeout,
                headers=headers,
            )
        )

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
        return await self._call(
            lambda: self._inner.capture_snapshot(
                sandbox_name,
                name,
                tag=tag,
                fs_capacity_bytes=fs_capacity_bytes,
                run_config=run_config,
                timeout=timeout,
                headers=headers,
            )
        )

    async def get_snapshot(self, snapshot_id: str, *, headers: Mapping[str, str] | None = None) -> Snapshot:
        """A snapshot by id. Raises :class:`~sandboxrt.errors.ResourceNotFoundError`."""
        return await self._call(lambda: self._inner.get_snapshot(snapshot_id, headers=headers))

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
        return await self._call(
            lambda: self._inner.list_snapshots(name_contains=name_contains, limit=limit, offset=offset, headers=headers)
        )

    async def delete_snapshot(self, snapshot_id: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Delete a snapshot.

        Raises:
            ResourceInUseError: Sandboxes use it, or snapshots that were captured from those; ``used_by`` names them.
            ResourceNotFoundError: There is no such snapshot.
        """
        await self._call(lambda: self._inner.delete_snapshot(snapshot_id, headers=headers))

    async def wait_for_snapshot(
        self,
        snapshot_id: str,
        *,
        timeout: float = 300,
        poll_interval: float = 2.0,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Wait until a snapshot is ready. Raises as :meth:`create_snapshot`."""
        return await self._call(
            lambda: self._inner.wait_for_snapshot(
                snapshot_id, timeout=timeout, poll_interval=poll_interval, headers=headers
            )
        )
