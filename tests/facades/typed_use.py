"""What type checkers make of the three clients. Read by mypy in the ``types`` session, never run."""

from __future__ import annotations

from typing import assert_type

import sandboxrt
import sandboxrt.aio
from sandboxrt import ExecutionResult, OutputChunk, Snapshot


def blocking(client: sandboxrt.SandboxClient, wait: bool) -> None:
    with client as same, client.sandbox() as sb:
        assert_type(same, sandboxrt.SandboxClient)
        assert_type(sb, sandboxrt.Sandbox)
        assert_type(sb.run("true"), ExecutionResult)
        assert_type(sb.run("true", on_stdout=print), ExecutionResult)
        assert_type(sb.run("true", wait=wait), ExecutionResult | sandboxrt.CommandHandle)
        with sb.run("true", wait=False) as handle:
            assert_type(handle, sandboxrt.CommandHandle)
            for chunk in handle:
                assert_type(chunk, OutputChunk)
            assert_type(handle.result, ExecutionResult)
            assert_type(handle.reconnect(), sandboxrt.CommandHandle)
    assert_type(client.create_sandbox(), sandboxrt.Sandbox)
    assert_type(client.list_sandboxes(), list[sandboxrt.Sandbox])
    assert_type(client.list_snapshots(), list[Snapshot])


async def on_asyncio(client: sandboxrt.aio.AsyncSandboxClient, wait: bool) -> None:
    async with client as same, client.sandbox() as sb:
        assert_type(same, sandboxrt.aio.AsyncSandboxClient)
        assert_type(sb, sandboxrt.aio.AsyncSandbox)
        assert_type(await sb.run("true"), ExecutionResult)
        assert_type(await sb.run("true", wait=wait), ExecutionResult | sandboxrt.aio.AsyncCommandHandle)
        async with await sb.run("true", wait=False) as handle:
            assert_type(handle, sandboxrt.aio.AsyncCommandHandle)
            async for chunk in handle:
                assert_type(chunk, OutputChunk)
            assert_type(await handle.result, ExecutionResult)
    async with await client.sandbox() as sb:
        assert_type(sb, sandboxrt.aio.AsyncSandbox)
    assert_type(await client.list_sandboxes(), list[sandboxrt.aio.AsyncSandbox])


async def on_trio(client: sandboxrt.AsyncSandboxClient) -> None:
    async with client as same, client.sandbox() as sb:
        assert_type(same, sandboxrt.AsyncSandboxClient)
        assert_type(sb, sandboxrt.AsyncSandbox)
        async with await sb.run("true", wait=False) as handle:
            assert_type(handle, sandboxrt.AsyncCommandHandle)
            assert_type(await handle.result, ExecutionResult)
