"""Rows 27 to 29: commands that outlive an attachment, and those that must not."""

from __future__ import annotations

import asyncio
import gc
import time

import langsmith.sandbox as ls
from context import Context, check, raises, same


async def leave_running(context: Context) -> None:
    """Row 27, first part: start, read a little, and leave it to another process."""
    async with context.client() as client:
        sandbox = await client.create_sandbox(context.options["snapshot_id"])
        handle = await sandbox.run("echo first; sleep 1; echo second", wait=False, timeout=30, ttl_seconds=2)
        async for _ in handle:
            break
        context.notes.update(sandbox=sandbox.name, command_id=handle.command_id, offset=handle.last_stdout_offset)


async def take_over(context: Context) -> None:
    """Row 27, second part: another process goes on, from an offset, after the exit, and too late."""
    left = context.options["left"]
    async with context.client() as client:
        sandbox = await client.get_sandbox(left["sandbox"])
        try:
            rest = await sandbox.reconnect(left["command_id"], stdout_offset=left["offset"])
            result = await rest.result
            same((result.stdout, result.exit_code), ("second\n", 0), "from the offset on")
            whole = await (await sandbox.reconnect(left["command_id"])).result
            same(whole.stdout, "first\nsecond\n", "after the exit, from the beginning")
            await asyncio.sleep(2.5)

            async def late() -> None:
                async for _ in await sandbox.reconnect(left["command_id"]):
                    pass

            error = await raises(ls.SandboxOperationError, late())
            check(error.operation == "reconnect", f"operation {error.operation!r}")
        finally:
            await sandbox.delete()


async def idle_timeout(context: Context) -> None:
    """Row 28: a command that nobody listens to is killed, unless it was told to live."""
    async with context.sandbox() as sandbox:
        for limit, survives in ((1, False), (-1, True)):
            handle = await sandbox.run("echo up; exec sleep 4713", timeout=0, wait=False, idle_timeout=limit)
            async for _ in handle:
                break
            del handle
            await _forget()
            await asyncio.sleep(2)
            alive = (await sandbox.run("pgrep -x sleep >/dev/null && echo yes || echo no")).stdout == "yes\n"
            same(alive, survives, f"alive with idle_timeout={limit}")


async def kill_on_disconnect(context: Context) -> None:
    """Row 29: gone when the last listener is."""
    async with context.sandbox() as sandbox:
        handle = await sandbox.run("echo up; exec sleep 4714", timeout=0, wait=False, kill_on_disconnect=True)
        async for _ in handle:
            break
        del handle
        await _forget()
        deadline = time.monotonic() + 10
        while (await sandbox.run("pgrep -x sleep >/dev/null && echo yes || echo no")).stdout != "no\n":
            check(time.monotonic() < deadline, "it is gone within ten seconds")
            await asyncio.sleep(0.1)


async def _forget() -> None:
    """Let go of a handle: its generator closes when it is collected."""
    for _ in range(3):
        gc.collect()
        await asyncio.sleep(0.05)


SCENARIOS = {
    "27a": leave_running,
    "27b": take_over,
    "28": idle_timeout,
    "29": kill_on_disconnect,
}
