"""The same mistake raises the same error, whether the host is embedded or serves, and at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from sandboxrt import AsyncSandbox, AsyncSandboxClient
from sandboxrt.errors import (
    ResourceNotFoundError,
    SandboxAuthenticationError,
    SandboxClientError,
    SandboxNotReadyError,
    SandboxOperationError,
)
from sandboxrt.testing.fake import FakeEngine
from tests.server.app_kit import site

Use = Callable[[AsyncSandbox], Awaitable[object]]


@pytest.fixture(params=["embedded", "served"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncSandboxClient]:
    if request.param == "embedded":
        async with (
            FakeEngine() as engine,
            AsyncSandboxClient(mode="embedded", state_dir=tmp_path, engine=engine) as client,
        ):
            yield client
    else:
        async with site(tmp_path) as found:
            endpoint = f"{found.server.url}/v2/sandboxes"
            async with AsyncSandboxClient(api_endpoint=endpoint, api_key=found.secret) as client:
                yield client


async def _tunnel(sandbox: AsyncSandbox) -> None:
    async with await sandbox.tunnel(80):
        pass


USES: dict[str, Use] = {
    "run": lambda sandbox: sandbox.run("true"),
    "run_and_return": lambda sandbox: sandbox.run("true", wait=False),
    "reconnect": lambda sandbox: sandbox.reconnect("command"),
    "read": lambda sandbox: sandbox.read("/root/x"),
    "write": lambda sandbox: sandbox.write("/root/x", "y"),
    "tunnel": _tunnel,
}


async def failure(use: Use, sandbox: AsyncSandbox) -> SandboxClientError:
    with trio.fail_after(5), pytest.raises(SandboxClientError) as raised:
        await use(sandbox)
    return raised.value


@pytest.mark.parametrize("use", USES)
async def test_a_sandbox_that_is_gone(client: AsyncSandboxClient, use: str) -> None:
    sandbox = await client.create_sandbox(name="mine")
    await client.delete_sandbox("mine")
    error = await failure(USES[use], sandbox)
    assert type(error) is ResourceNotFoundError
    assert (str(error), error.resource_type) == ("Sandbox 'mine' not found", "sandbox")


async def test_a_sandbox_that_goes_while_a_command_is_attached(client: AsyncSandboxClient) -> None:
    sandbox = await client.create_sandbox(name="mine")
    handle = await sandbox.run("sleep 100", wait=False, timeout=0)
    await client.delete_sandbox("mine")
    with trio.fail_after(5), pytest.raises(SandboxClientError, match=r"deleted|stopped|ended"):
        await handle.result
    with trio.fail_after(5), pytest.raises(ResourceNotFoundError, match="Sandbox 'mine' not found"):
        await sandbox.reconnect(handle.command_id)


@pytest.mark.parametrize(
    ("path", "operation", "error_type", "words"),
    [
        ("/root", "read", "IsDirectory", "is a folder (Is a directory)"),
        ("/root", "write", "IsDirectory", "is a folder (Is a directory)"),
        ("/etc/passwd/x", "read", "NotADirectory", "(Not a directory)"),
        ("/etc/passwd/x", "write", "NotADirectory", "(Not a directory)"),
        ("/" + "n" * 300, "read", "NameTooLong", "(File name too long)"),
    ],
)
async def test_files(client: AsyncSandboxClient, path: str, operation: str, error_type: str, words: str) -> None:
    sandbox = await client.create_sandbox()
    error = await failure(lambda it: it.read(path) if operation == "read" else it.write(path, "x"), sandbox)
    assert isinstance(error, SandboxOperationError)
    assert (error.operation, error.error_type) == (operation, error_type)
    assert words in str(error)


async def test_a_file_that_is_not_there(client: AsyncSandboxClient) -> None:
    sandbox = await client.create_sandbox(name="mine")
    error = await failure(lambda it: it.read("/no/such"), sandbox)
    assert isinstance(error, ResourceNotFoundError)
    assert error.resource_type == "file"
    assert str(error) == "File '/no/such' not found in sandbox 'mine' (No such file or directory)"


async def test_a_sandbox_that_was_stopped(client: AsyncSandboxClient) -> None:
    sandbox = await client.create_sandbox(name="mine")
    await sandbox.stop()
    for use in USES.values():
        error = await failure(use, sandbox)
        assert type(error) is SandboxNotReadyError
        assert str(error) == "Sandbox 'mine' is not ready (status: stopped): start it first"


async def test_a_wrong_key(tmp_path: Path) -> None:
    """Over the WebSocket, too."""
    async with site(tmp_path) as found:
        endpoint = f"{found.server.url}/v2/sandboxes"
        async with AsyncSandboxClient(api_endpoint=endpoint, api_key=found.secret) as client:
            sandbox = await client.create_sandbox()
            for use in ("run", "read", "write"):
                work = {
                    "run": lambda: sandbox.run("true", headers={"x-api-key": "wrong"}),
                    "read": lambda: sandbox.read("/x", headers={"x-api-key": "wrong"}),
                    "write": lambda: sandbox.write("/x", "", headers={"x-api-key": "wrong"}),
                }[use]
                with trio.fail_after(5), pytest.raises(SandboxAuthenticationError):
                    await work()
