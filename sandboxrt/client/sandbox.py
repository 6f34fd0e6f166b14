"""One sandbox in the user's hands: commands and files in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, overload

import attrs
import trio

from sandboxrt.client.callbacks import OutputCallback, run_callbacks
from sandboxrt.client.captures import capture_and_wait
from sandboxrt.client.command import AsyncCommandHandle
from sandboxrt.client.leases import LeaseKeeper
from sandboxrt.client.owner import Owner
from sandboxrt.client.service import AsyncServiceURL
from sandboxrt.client.service_calls import download_request, open_service
from sandboxrt.client.session import CommandSession, new_command_id
from sandboxrt.client.tunnel import AsyncTunnelOpening, open_tunnel
from sandboxrt.errors import SandboxClientError, SandboxOperationError
from sandboxrt.models import (
    DownloadURL,
    ExecutionResult,
    IsolationReport,
    OutputChunk,
    RunConfig,
    SandboxOwner,
    Snapshot,
)
from sandboxrt.protocol.exec import Execute
from sandboxrt.protocol.rest import CaptureSnapshot, SandboxInfo
from sandboxrt.protocol.wording import not_ready

__all__ = ["AsyncSandbox", "AsyncSandboxCreation"]

DELETE_S = 30.0
"""How long leaving a sandbox waits for its deletion; what is left then goes with the client."""
_WRITE_CHUNK_BYTES = 1024 * 1024
_CALLBACK_BATCH = 16
"""Chunks that one visit to another thread's callbacks takes along."""


class AsyncSandbox:
    """A sandbox as it was when this object was made; nothing refreshes the properties.

    As a context manager: one from ``client.sandbox()`` is deleted on exit, any other is left alone. Errors of that
    deletion are swallowed (a server deletes by TTL, the embedded host deletes everything when the client closes).

    Source: protocol.md §7.1.
    """

    def __init__(
        self,
        owner: Owner,
        info: SandboxInfo,
        *,
        auto_delete: bool,
        created: bool = False,
        lease: LeaseKeeper | None = None,
    ) -> None:
        self._owner = owner
        self._info = info
        self._is_stopped_here = False
        self._auto_delete = auto_delete
        self._created = created
        self._lease = lease

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.status}>"

    @property
    def name(self) -> str:
        """Display name, unique on its host."""
        return self._info.name

    @property
    def id(self) -> str:
        """Unique identifier (UUID)."""
        return self._info.id

    @property
    def status(self) -> str:
        """``provisioning``, ``ready``, ``failed`` or ``stopped``, as of when this object was made."""
        return self._info.status

    @property
    def status_message(self) -> str | None:
        """Why, when the status is ``failed``."""
        return self._info.status_message

    @property
    def dataplane_url(self) -> str | None:
        """Where a server takes commands for it; ``None`` when embedded."""
        return self._info.dataplane_url

    @property
    def snapshot_id(self) -> str | None:
        """The snapshot it was made from."""
        return self._info.snapshot_id

    @property
    def created_at(self) -> str | None:
        """ISO-8601 time, UTC."""
        return self._info.created_at

    @property
    def updated_at(self) -> str | None:
        """ISO-8601 time, UTC."""
        return self._info.updated_at

    @property
    def ttl_seconds(self) -> int | None:
        """Longest lifetime in seconds; 0 = disabled, ``None`` = not set."""
        return self._info.ttl_seconds

    @property
    def idle_ttl_seconds(self) -> int | None:
        """Lifetime without activity in seconds; 0 = disabled, ``None`` = not set."""
        return self._info.idle_ttl_seconds

    @property
    def delete_after_stop_seconds(self) -> int | None:
        """How long it stays stopped until it is deleted; 0 = for ever, ``None`` = idleness deletes it at once."""
        return self._info.delete_after_stop_seconds

    @property
    def owner(self) -> SandboxOwner | None:
        """Who runs it, where that is another process, or another event loop of this one; it can only be used there."""
        return self._info.owner

    @property
    def expires_at(self) -> str | None:
        """When it expires, as an ISO-8601 time, if a TTL is active."""
        return self._info.expires_at

    @property
    def vcpus(self) -> float | None:
        """CPU limit."""
        return self._info.vcpus

    @property
    def mem_bytes(self) -> int | None:
        """Memory limit in bytes."""
        return self._info.mem_bytes

    @property
    def fs_capacity_bytes(self) -> int | None:
        """Disk size in bytes."""
        return self._info.fs_capacity_bytes

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
        if not wait and (on_stdout is not None or on_stderr is not None):
            raise ValueError("callbacks need wait=True; with wait=False iterate the handle")
        _check_seconds("timeout", timeout, endless=False)
        _check_seconds("idle_timeout", idle_timeout, endless=True)
        _check_seconds("ttl_seconds", ttl_seconds, endless=True)
        close_stdin = (wait and not pty) if close_input is None else close_input and not pty
        session = await CommandSession.start(
            self._owner,
            self._usable(),
            Execute(
                command=command,
                command_id=new_command_id(),
                timeout_s=timeout,
                idle_timeout_s=idle_timeout,
                ttl_s=ttl_seconds,
                kill_on_disconnect=kill_on_disconnect,
                close_stdin=close_stdin,
                shell=shell,
                env=dict(env or {}),
                cwd=cwd,
                user=user,
                pty=pty,
                columns=columns,
                rows=rows,
            ),
            headers,
        )
        if not wait:
            return AsyncCommandHandle(session, stdin_closed=close_stdin, pty=pty)
        return await _complete(session, on_stdout, on_stderr)

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
        if stdout_offset < 0 or stderr_offset < 0:
            raise ValueError("offsets must not be negative")
        session = await CommandSession.reconnect(
            self._owner, self._usable(), command_id, stdout_offset, stderr_offset, headers
        )
        return AsyncCommandHandle(session, stdin_closed=False, pty=False)

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
        data = content.encode() if isinstance(content, str) else bytes(content)
        with _time_limit(timeout) as scope:
            await self._owner.transport.with_headers(headers).write_file(self._usable(), path, _Pieces(data))
        if scope.cancelled_caught:
            raise SandboxOperationError(f"{path} was not written within {timeout:g} s", "write", "Timeout")

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
        data = b""
        with _time_limit(timeout) as scope:
            data = await self._owner.transport.with_headers(headers).read_file(self._usable(), path)
        if scope.cancelled_caught:
            raise SandboxOperationError(f"{path} was not read within {timeout:g} s", "read", "Timeout")
        return data

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
        return await open_service(self._owner, self.name, port, expires_in_seconds, headers)

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
        request = download_request(path, expires_in_seconds, content_type, content_disposition)
        return await self._owner.transport.with_headers(headers).download_url(self.name, request)

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
        transport = self._owner.transport.with_headers(headers)
        if max_reconnects < 0:
            raise ValueError(f"max_reconnects must be 0 or more, not {max_reconnects}")
        return open_tunnel(
            self._owner,
            lambda: transport.tunnel(self._usable(), remote_port, max_reconnects),
            remote_port,
            local_port,
            probe,
        )

    async def stop(self, *, headers: Mapping[str, str] | None = None) -> None:
        """End all that runs in it, politely (SIGTERM, a few seconds, SIGKILL); its files stay. Idempotent.

        This object's ``status`` is ``stopped`` then, and :meth:`start` makes it usable again.

        Raises:
            SandboxNotReadyError: It is neither ready nor stopped.

        Source: protocol.md §2.4.
        """
        await self._owner.transport.with_headers(headers).stop_sandbox(self.name)
        self._info = attrs.evolve(self._info, status="stopped", dataplane_url=None)
        self._is_stopped_here = True

    async def start(self, *, timeout: float = 120, headers: Mapping[str, str] | None = None) -> None:
        """Make it ready again after :meth:`stop`, its files as they were, and wait for that. Idempotent.

        Raises:
            ResourceCreationError: It could not be started; the message says why, and the files are still there.
            ResourceTimeoutError: It was not ready after ``timeout`` seconds; it still becomes so.

        Source: protocol.md §2.4.
        """
        info = await self._owner.transport.with_headers(headers).start_sandbox(self.name, timeout)
        self._info = attrs.evolve(self._info, status=info.status, dataplane_url=info.dataplane_url)
        self._is_stopped_here = False

    async def isolation(self) -> IsolationReport:
        """What isolation this sandbox really has.

        Source: ours.
        """
        return await self._owner.transport.isolation(self._info)

    async def delete(self, *, headers: Mapping[str, str] | None = None) -> None:
        """Delete the sandbox and everything in it.

        Raises:
            ResourceNotFoundError: It is gone already.
        """
        await self._owner.transport.with_headers(headers).delete_sandbox(self.name)
        if self._lease is not None:
            self._lease.end()

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
        request = CaptureSnapshot(
            name=name, tag=tag or "latest", fs_capacity_bytes=fs_capacity_bytes, run_config=run_config
        )
        return await capture_and_wait(self._owner.transport.with_headers(headers), self.name, request, timeout)

    def _usable(self) -> SandboxInfo:
        """What is known of it. A server wakes what is stopped; what this object has stopped rests until ``start``."""
        if self._is_stopped_here:
            raise not_ready(self.name, "stopped")
        return self._info

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._auto_delete:
            await self._delete_quietly()

    async def _delete_quietly(self) -> None:
        with trio.move_on_after(DELETE_S, shield=True):
            try:
                await self.delete()
            except SandboxClientError:
                pass  # protocol.md §7.1
        if self._lease is not None:
            self._lease.end()  # what could not be deleted goes with it

    async def _discard(self) -> None:
        """Delete it if it is new: the call that made it was interrupted before it could hand it out."""
        if self._created:
            await self._delete_quietly()


class AsyncSandboxCreation:
    """A sandbox to be: ``await`` it, or enter it, and it is created.

    ``async with client.sandbox(...) as sb`` and ``async with await client.sandbox(...) as sb`` do the same.
    """

    def __init__(self, create: Callable[[], Awaitable[AsyncSandbox]]) -> None:
        self._create = create
        self._sandbox: AsyncSandbox | None = None

    def __await__(self) -> Generator[Any, Any, AsyncSandbox]:
        return self._create().__await__()

    async def __aenter__(self) -> AsyncSandbox:
        self._sandbox = await self._create()
        return self._sandbox

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._sandbox is not None:
            await self._sandbox.__aexit__(exc_type, exc, traceback)


async def _complete(
    session: CommandSession, on_stdout: OutputCallback | None, on_stderr: OutputCallback | None
) -> ExecutionResult:
    """Wait for the end; on any way out but that one, end the command."""
    try:
        if on_stdout is not None or on_stderr is not None:
            while not session.ended:
                await session.fill(_CALLBACK_BATCH)
                await run_callbacks(partial(_call_back, session, on_stdout, on_stderr))
        return await session.result()
    except BaseException:
        await session.abort()
        raise


def _call_back(session: CommandSession, on_stdout: OutputCallback | None, on_stderr: OutputCallback | None) -> None:
    chunk: OutputChunk | None
    while (chunk := session.take()) is not None:
        callback = on_stdout if chunk.stream == "stdout" else on_stderr
        if callback is not None:
            callback(chunk.data)


def _check_seconds(name: str, value: float, *, endless: bool) -> None:
    if value < 0 and not (endless and value == -1):
        raise ValueError(f"{name} must be 0 or more{', or -1 for no limit' if endless else ' (0 = no limit)'}")


def _time_limit(timeout: float) -> trio.CancelScope:
    if timeout < 0:
        raise ValueError("timeout must be 0 or more (0 = no limit)")
    return trio.move_on_after(timeout) if timeout else trio.CancelScope()


class _Pieces:
    """Bytes in pieces that a transport can send. Not an async generator: those need someone to close them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._position >= len(self._data):
            raise StopAsyncIteration
        start, self._position = self._position, self._position + _WRITE_CHUNK_BYTES
        return self._data if len(self._data) <= _WRITE_CHUNK_BYTES else self._data[start : self._position]
