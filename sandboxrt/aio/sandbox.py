"""The classes of ``sandboxrt.client.sandbox``, on asyncio.

Generated from sandboxrt/client/sandbox.py by tools/gen_facades.py: do not edit.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from types import TracebackType
from typing import Any, Literal, Self, overload

from sandboxrt.aio.command import AsyncCommandHandle
from sandboxrt.aio.service import AsyncServiceURL
from sandboxrt.aio.tunnel import AsyncTunnelOpening
from sandboxrt.bridge.loops import AsyncioFacade
from sandboxrt.client import command as _trio_command
from sandboxrt.client import sandbox as _trio_sandbox
from sandboxrt.client.callbacks import OutputCallback
from sandboxrt.models import DownloadURL, ExecutionResult, IsolationReport, RunConfig, SandboxOwner, Snapshot

__all__ = ["AsyncSandbox", "AsyncSandboxCreation"]


class AsyncSandbox(AsyncioFacade[_trio_sandbox.AsyncSandbox]):
    """A sandbox as it was when this object was made; nothing refreshes the properties.

    As a context manager: one from ``client.sandbox()`` is deleted on exit, any other is left alone. Errors of that
    deletion are swallowed (a server deletes by TTL, the embedded host deletes everything when the client closes).

    Source: protocol.md §7.1.
    """

    @property
    def name(self) -> str:
        """Display name, unique on its host."""
        return self._inner.name

    @property
    def id(self) -> str:
        """Unique identifier (UUID)."""
        return self._inner.id

    @property
    def status(self) -> str:
        """``provisioning``, ``ready``, ``failed`` or ``stopped``, as of when this object was made."""
        return self._inner.status

    @property
    def status_message(self) -> str | None:
        """Why, when the status is ``failed``."""
        return self._inner.status_message

    @property
    def dataplane_url(self) -> str | None:
        """Where a server takes commands for it; ``None`` when embedded."""
        return self._inner.dataplane_url

    @property
    def snapshot_id(self) -> str | None:
        """The snapshot it was made from."""
        return self._inner.snapshot_id

    @property
    def created_at(self) -> str | None:
        """ISO-8601 time, UTC."""
        return self._inner.created_at

    @property
    def updated_at(self) -> str | None:
        """ISO-8601 time, UTC."""
        return self._inner.updated_at

    @property
    def ttl_seconds(self) -> int | None:
        """Longest lifetime in seconds; 0 = disabled, ``None`` = not set."""
        return self._inner.ttl_seconds

    @property
    def idle_ttl_seconds(self) -> int | None:
        """Lifetime without activity in seconds; 0 = disabled, ``None`` = not set."""
        return self._inner.idle_ttl_seconds

    @property
    def delete_after_stop_seconds(self) -> int | None:
        """How long it stays stopped until it is deleted; 0 = for ever, ``None`` = idleness deletes it at once."""
        return self._inner.delete_after_stop_seconds

    @property
    def owner(self) -> SandboxOwner | None:
        """Who runs it, where that is another process, or another event loop of this one; it can only be used there."""
        return self._inner.owner

    @property
    def expires_at(self) -> str | None:
        """When it expires, as an ISO-8601 time, if a TTL is active."""
        return self._inner.expires_at

    @property
    def vcpus(self) -> float | None:
        """CPU limit."""
        return self._inner.vcpus

    @property
    def mem_bytes(self) -> int | None:
        """Memory limit in bytes."""
        return self._inner.mem_bytes

    @property
    def fs_capacity_bytes(self) -> int | None:
        """Disk size in bytes."""
        return self._inner.fs_capacity_bytes

    @overload
    async def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        shell: str | None = None,
        user: str | None = None,
        on_stdout: OutputCallback | None = None,
        on_stderr: OutputCallback | None = None,
        idle_timeout: float = 300,
        kill_on_disconnect: bool = False,
        ttl_seconds: float = 600,
        pty: bool = False,
        close_input: bool | None = None,
        columns: int = 80,
        rows: int = 24,
        headers: Mapping[str, str] | None = None,
        wait: Literal[True] = True,
    ) -> ExecutionResult: ...

    @overload
    async def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        shell: str | None = None,
        user: str | None = None,
        on_stdout: None = None,
        on_stderr: None = None,
        idle_timeout: float = 300,
        kill_on_disconnect: bool = False,
        ttl_seconds: float = 600,
        pty: bool = False,
        close_input: bool | None = None,
        columns: int = 80,
        rows: int = 24,
        headers: Mapping[str, str] | None = None,
        wait: Literal[False],
    ) -> AsyncCommandHandle: ...

    @overload
    async def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        shell: str | None = None,
        user: str | None = None,
        on_stdout: OutputCallback | None = None,
        on_stderr: OutputCallback | None = None,
        idle_timeout: float = 300,
        kill_on_disconnect: bool = False,
        ttl_seconds: float = 600,
        pty: bool = False,
        close_input: bool | None = None,
        columns: int = 80,
        rows: int = 24,
        headers: Mapping[str, str] | None = None,
        wait: bool,
    ) -> ExecutionResult | AsyncCommandHandle: ...

    async def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        shell: str | None = None,
        user: str | None = None,
        on_stdout: OutputCallback | None = None,
        on_stderr: OutputCallback | None = None,
        idle_timeout: float = 300,
        kill_on_disconnect: bool = False,
        ttl_seconds: float = 600,
        pty: bool = False,
        close_input: bool | None = None,
        columns: int = 80,
        rows: int = 24,
        headers: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> ExecutionResult | AsyncCommandHandle:
        """Run a shell command.

        Args:
            command: Run as ``shell -c command``.
            timeout: Wall-clock limit in seconds; 0 = none. On expiry the whole process tree is ended.
            env: Environment variables, added to the sandbox's.
            cwd: Working directory; the snapshot's if ``None``.
            shell: Absolute path; ``/bin/bash`` if ``None`` (``/bin/sh`` in an image without it).
            user: ``name``, ``uid``, ``name:group`` or ``uid:gid``; the snapshot's if ``None``.
            on_stdout: Called with each piece of standard output, in order. Blocking in it holds up the reading of
                output, never the command. What it raises ends the command and is raised here.
            on_stderr: The same for standard error.
            idle_timeout: Kill the command after this many seconds without a client attached; -1 = never.
            kill_on_disconnect: Kill the command as soon as no client is attached.
            ttl_seconds: How long the finished command can still be attached to, in seconds; -1 = for ever.
            pty: Give it a terminal; all it shows is standard output.
            close_input: Give it end of input from the start. ``None``: yes where nobody could send any (``wait=True``
                without ``pty``), so that ``cat`` ends; no otherwise, so that ``send_input`` works.
            columns: Width of the terminal in characters.
            rows: Height of the terminal in lines.
            headers: Sent to a server with this call; of no effect when embedded.
            wait: Whether to wait for the end; otherwise return as soon as the command has started.

        Returns:
            An :class:`~sandboxrt.ExecutionResult`, or a handle when ``wait`` is false.

        Raises:
            ValueError: A callback together with ``wait=False``, or a number out of range.
            CommandTimeoutError: It ran longer than ``timeout``; has the output until then.
            SandboxNotReadyError: The sandbox is not ready: ``client.wait_for_sandbox`` first.
            SandboxOperationError: It could not be started (working directory, shell, user), for the reason given.
            SandboxConnectionError: The sandbox went away.

        Cancellation: atomic with ``wait=False``; otherwise the command is ended (shielded, at most 5 s).

        Source: protocol.md §4; ``user``, ``columns`` and ``rows`` are ours.
        """
        value = await self._call(
            lambda: self._inner.run(
                command,
                timeout=timeout,
                env=env,
                cwd=cwd,
                shell=shell,
                user=user,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                idle_timeout=idle_timeout,
                kill_on_disconnect=kill_on_disconnect,
                ttl_seconds=ttl_seconds,
                pty=pty,
                close_input=close_input,
                columns=columns,
                rows=rows,
                headers=headers,
                wait=wait,
            )
        )
        if isinstance(value, _trio_command.AsyncCommandHandle):
            return AsyncCommandHandle._of(value, self._portal)
        return value

    async def reconnect(
        self,
        command_id: str,
        *,
        stdout_offset: int = 0,
        stderr_offset: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncCommandHandle:
        """Attach to a command that was started before, running or finished.

        Args:
            command_id: ``handle.command_id`` of then.
            stdout_offset: Where to begin in standard output, in bytes of its UTF-8 text.
            stderr_offset: The same for standard error.
            headers: Sent to a server with this call; of no effect when embedded.

        Returns:
            A handle, attached; it has the output from those offsets on.

        Raises:
            CommandNotFoundError: The session expired (``ttl_seconds``), never existed, or belongs to another process.
            OutputLostError: The output that far back is gone.

        Source: protocol.md §4.5; that it raises here, not at first use, is the README's word.
        """
        return AsyncCommandHandle._of(
            await self._call(
                lambda: self._inner.reconnect(
                    command_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset, headers=headers
                )
            ),
            self._portal,
        )

    async def write(
        self, path: str, content: str | bytes, *, timeout: float = 60, headers: Mapping[str, str] | None = None
    ) -> None:
        """Write a file: parent folders are made, and the new content takes the place of the old at once.

        Args:
            path: Absolute path inside.
            content: Text (written as UTF-8) or bytes.
            timeout: Seconds to wait at most; 0 = no limit.
            headers: Sent to a server with this call; of no effect when embedded.

        Raises:
            SandboxOperationError: It cannot be written there; ``error_type`` and the message say why.
            SandboxNotReadyError: The sandbox is not ready.

        Cancellation: atomic: the old content or the new.
        """
        await self._call(lambda: self._inner.write(path, content, timeout=timeout, headers=headers))

    async def read(self, path: str, *, timeout: float = 60, headers: Mapping[str, str] | None = None) -> bytes:
        """Read a file.

        Args:
            path: Absolute path inside.
            timeout: Seconds to wait at most; 0 = no limit.
            headers: Sent to a server with this call; of no effect when embedded.

        Raises:
            ResourceNotFoundError: There is no such file (``resource_type="file"``).
            SandboxOperationError: It cannot be read: a folder, a device, no permission.
            SandboxNotReadyError: The sandbox is not ready.
        """
        return await self._call(lambda: self._inner.read(path, timeout=timeout, headers=headers))

    async def service(
        self, port: int, *, expires_in_seconds: int = 600, headers: Mapping[str, str] | None = None
    ) -> AsyncServiceURL:
        """An HTTP service on a port inside, reached without a tunnel.

        Args:
            port: The service's port, 1 to 65535. Nothing need listen there yet.
            expires_in_seconds: Life of each token, 1 to 86400; new ones are fetched in time.
            headers: Sent to a server with this call and with those for new tokens; of no effect when embedded.

        Raises:
            ValueError: A number out of range.
            ResourceNotFoundError: The sandbox is gone.

        Source: protocol.md §2.6, §6.
        """
        return AsyncServiceURL._of(
            await self._call(lambda: self._inner.service(port, expires_in_seconds=expires_in_seconds, headers=headers)),
            self._portal,
        )

    async def generate_download_url(
        self,
        path: str,
        *,
        expires_in_seconds: int | None = None,
        content_type: str | None = None,
        content_disposition: Literal["attachment", "inline"] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> DownloadURL:
        """A link to a file in it; see :meth:`~sandboxrt.AsyncSandboxClient.generate_download_url`.

        Raises:
            ValueError: An argument that cannot be.
            ResourceNotFoundError: The sandbox is gone.

        Source: protocol.md §2.7.
        """
        return await self._call(
            lambda: self._inner.generate_download_url(
                path,
                expires_in_seconds=expires_in_seconds,
                content_type=content_type,
                content_disposition=content_disposition,
                headers=headers,
            )
        )

    def tunnel(
        self,
        remote_port: int,
        *,
        local_port: int = 0,
        max_reconnects: int = 3,
        probe: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncTunnelOpening:
        """A port on this machine whose connections lead to a port inside.

        Use it as ``async with await sandbox.tunnel(5432) as t``, and connect to ``t.local_port``.

        Args:
            remote_port: The port inside, 1 to 65535; something should listen there on loopback, IPv4 or IPv6.
            local_port: The port on 127.0.0.1; 0 takes a free one, which ``t.local_port`` tells.
            max_reconnects: How often in succession a lost connection to a server is made anew; 0 = never. Of no effect
                when embedded.
            probe: Connect once at the start, so that what would refuse every connection is raised here.
            headers: Sent to a server with this call; of no effect when embedded.

        Raises:
            ValueError: A port that is none.
            OSError: The local port is in use; the message names it.
            SandboxNotReadyError: The sandbox is not ready.
            SandboxConnectionError: The server cannot be reached.
            TunnelConnectionRefusedError: With ``probe``: nothing listens there. Without it, connections are closed at
                once, and ``t.errors`` says why.
            TunnelPortNotAllowedError: With ``probe``: the rules exclude that port.

        Cancellation: atomic; what was opened is closed.

        Source: protocol.md §5.
        """
        return AsyncTunnelOpening._of(
            self._inner.tunnel(
                remote_port, local_port=local_port, max_reconnects=max_reconnects, probe=probe, headers=headers
            ),
            self._portal,
        )

    async def stop(self, *, headers: Mapping[str, str] | None = None) -> None:
        """End all that runs in it, politely (SIGTERM, a few seconds, SIGKILL); its files stay. Idempotent.

        This object's ``status`` is ``stopped`` then, and :meth:`start` makes it usable again.

        Raises:
            SandboxNotReadyError: It is neither ready nor stopped.

        Source: protocol.md §2.4.
        """
        await self._call(lambda: self._inner.stop(headers=headers))

    async def start(self, *, timeout: float = 120, headers: Mapping[str, str] | None = None) -> None:
        """Make it ready again after :meth:`stop`, its files as they were, and wait for that. Idempotent.

        Raises:
            ResourceCreationError: It could not be started; the message says why, and the files are still there.
            ResourceTimeoutError: It was not ready after ``timeout`` seconds; it still becomes so.

        Source: protocol.md §2.4.
        """
        await self._call(lambda: self._inner.start(timeout=timeout, headers=headers))

    async def isolation(self) -> IsolationReport:
        """What isolation this sandbox really has.

        Source: ours.
        """
        return await self._call(self._inner.isolation)

    async def delete(self, *, headers: Mapping[str, str] | None = None) -> None:
        """Delete the sandbox and everything in it.

        Raises:
            ResourceNotFoundError: It is gone already.
        """
        await self._call(lambda: self._inner.delete(headers=headers))

    async def capture_snapshot(
        self,
        name: str,
        *,
        tag: str | None = None,
        fs_capacity_bytes: int | None = None,
        run_config: RunConfig | None = None,
        timeout: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Make a snapshot of this sandbox's files, and wait until it is ready.

        The arguments and errors are those of the client's ``capture_snapshot``.
        """
        return await self._call(
            lambda: self._inner.capture_snapshot(
                name,
                tag=tag,
                fs_capacity_bytes=fs_capacity_bytes,
                run_config=run_config,
                timeout=timeout,
                headers=headers,
            )
        )

    async def __aenter__(self) -> Self:
        await self._enter(self._inner)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exit(exc)


class AsyncSandboxCreation(AsyncioFacade[_trio_sandbox.AsyncSandboxCreation]):
    """A sandbox to be: ``await`` it, or enter it, and it is created.

    ``async with client.sandbox(...) as sb`` and ``async with await client.sandbox(...) as sb`` do the same.
    """

    def __await__(self) -> Generator[Any, Any, AsyncSandbox]:
        return self._awaited().__await__()

    async def _awaited(self) -> AsyncSandbox:
        return AsyncSandbox._of(await self._call(lambda: self._inner), self._portal)

    async def __aenter__(self) -> AsyncSandbox:
        return AsyncSandbox._of(await self._enter(self._inner), self._portal)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exit(exc)
