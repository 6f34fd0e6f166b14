"""Rows 6 to 13 and 15: how sandboxes come, change, rest, and how snapshots are listed."""

from __future__ import annotations

import asyncio
import inspect
import time

import langsmith.sandbox as ls
from context import Context, check, raises, same

MIB = 1024**2


async def without_waiting(context: Context) -> None:
    """Row 6: a create that does not wait, and what waits for it."""
    async with context.client() as client:
        sandbox = await client.create_sandbox(context.options["snapshot_id"], wait_for_ready=False)
        try:
            check(sandbox.status in ("provisioning", "ready"), f"status {sandbox.status!r}")
            if sandbox.status == "provisioning":
                # Older clients see it themselves; newer ones have no address yet, or are told by the server.
                await raises((ls.SandboxNotReadyError, ls.DataplaneNotConfiguredError), sandbox.run("true"))
            ready = await client.wait_for_sandbox(sandbox.name, timeout=30)
            same((ready.status, ready.id), ("ready", sandbox.id), "what was waited for")
            same((await ready.run("echo here")).stdout, "here\n", "a command in it")
        finally:
            await client.delete_sandbox(sandbox.name)


async def too_late(context: Context) -> None:
    """Row 7: a create that cannot be ready in time; nothing is left of it."""
    async with context.client() as client:
        name = f"late-{context.form}-{context.generation[1]}"
        error = await raises(
            ls.ResourceTimeoutError, client.create_sandbox(context.options["snapshot_id"], name=name, timeout=0)
        )
        same(error.resource_type, "sandbox", "resource_type")
        await raises(ls.ResourceNotFoundError, client.get_sandbox(name))


async def too_much(context: Context) -> None:
    """Row 8: more than a sandbox may ask for."""
    async with context.client() as client:
        for field in ("mem_bytes", "fs_capacity_bytes"):
            error = await raises(
                ls.ValidationError, client.create_sandbox(context.options["snapshot_id"], **{field: 2**52})
            )
            same(error.field, field, "the field")


async def quotas(context: Context) -> None:
    """Row 9: one more than the key's quota has room for, of each kind; told after all tries, and soon."""
    for kind, key in context.options["limited_keys"].items():
        async with context.client(api_key=key) as client, await client.sandbox(snapshot_name="host") as sandbox:
            began = time.monotonic()
            error = await raises(ls.QuotaExceededError, client.create_sandbox(snapshot_name="host"))
            same(error.quota_type, kind, "the kind of the quota")
            check(time.monotonic() - began < 10, "no long waits between the tries")
            same([each.name for each in await client.list_sandboxes()], [sandbox.name], "what there is")


async def renaming(context: Context) -> None:
    """Row 10: a new name, and one that is taken."""
    async with (
        context.client() as client,
        await client.sandbox(context.options["snapshot_id"]) as first,
        await client.sandbox(context.options["snapshot_id"]) as second,
    ):
        await raises(ls.ResourceNameConflictError, client.update_sandbox(first.name, new_name=second.name))
        other = first.name + "-b"
        same((await client.update_sandbox(first.name, new_name=other)).name, other, "the new name")
        await raises(ls.ResourceNotFoundError, client.get_sandbox(first.name))
        await client.update_sandbox(other, new_name=first.name)


async def lifetimes(context: Context) -> None:
    """Row 11: TTLs at the creation and after it; 0 disables; ``expires_at`` follows."""
    absolute = "ttl_seconds" in inspect.signature(ls.SandboxClient.create_sandbox).parameters
    options = {"ttl_seconds": 3600} if absolute else {}
    async with context.client() as client:
        name = f"mortal-{context.form}-{context.generation[1]}"
        sandbox = await client.create_sandbox(
            context.options["snapshot_id"], name=name, idle_ttl_seconds=1200, **options
        )
        try:
            same(sandbox.idle_ttl_seconds, 1200, "the idle TTL")
            changed = await client.update_sandbox(name, idle_ttl_seconds=600)
            same(changed.idle_ttl_seconds, 600, "the idle TTL after an update")
            if absolute:
                check(sandbox.expires_at, "it expires")
                changed = await client.update_sandbox(name, ttl_seconds=0, idle_ttl_seconds=0)
                same((changed.ttl_seconds, changed.expires_at), (0, None), "after disabling both")
            else:
                changed = await client.update_sandbox(name, delete_after_stop_seconds=7200)
                same(changed.delete_after_stop_seconds, 7200, "the time after a stop")
            await raises(ValueError, client.create_sandbox(context.options["snapshot_id"], idle_ttl_seconds=61))
        finally:
            await client.delete_sandbox(name)


async def endings(context: Context) -> None:
    """Row 12: lifetimes end as they say, each after its minute; activity postpones the end of what is idle."""
    absolute = "ttl_seconds" in inspect.signature(ls.SandboxClient.create_sandbox).parameters
    stops = "delete_after_stop_seconds" in inspect.signature(ls.SandboxClient.create_sandbox).parameters
    snapshot_id, tail = context.options["snapshot_id"], f"-{context.form}-{context.generation[1]}"
    async with context.client() as client:

        async def there() -> set[str]:
            mine = [each for each in await client.list_sandboxes() if each.name.endswith(tail)]
            return {each.name.removesuffix(tail) + ":" + each.status for each in mine}

        await client.create_sandbox(snapshot_id, name="idle" + tail, idle_ttl_seconds=60)
        busy = await client.create_sandbox(snapshot_id, name="busy" + tail, idle_ttl_seconds=60)
        if absolute:
            await client.create_sandbox(snapshot_id, name="short" + tail, ttl_seconds=60)
        if stops:
            await client.create_sandbox(
                snapshot_id, name="resting" + tail, idle_ttl_seconds=60, delete_after_stop_seconds=60
            )
        await asyncio.sleep(40)
        await busy.run("true")
        await asyncio.sleep(35)
        same(await there(), {"busy:ready"} | ({"resting:stopped"} if stops else set()), "after more than a minute")
        await asyncio.sleep(60)
        same(await there(), set(), "after more than two")


async def stopping(context: Context) -> None:
    """Row 13: a stop keeps the files, also those in /tmp; a start has them again; older clients refuse, newer wake."""
    async with context.client() as client, await client.sandbox(context.options["snapshot_id"]) as sandbox:
        await sandbox.run("echo one > /tmp/state.txt; echo two > /root/state.txt")
        handle = await sandbox.run("sleep 1000", wait=False)
        await sandbox.stop()
        same((await client.get_sandbox_status(sandbox.name)).status, "stopped", "the status after a stop")
        same((await handle.result).exit_code, 143, "the code of what followed SIGTERM")
        await sandbox.start()
        same(sandbox.status, "ready", "the status after a start")
        output = (await sandbox.run("cat /tmp/state.txt /root/state.txt; pgrep -x sleep || echo none")).stdout
        same(output, "one\ntwo\nnone\n", "files and processes after a start")
        await client.stop_sandbox(sandbox.name)
        again = await client.start_sandbox(sandbox.name)
        same((await again.run("cat /tmp/state.txt")).stdout, "one\n", "the file after another start")
        await again.stop()
        if context.seed:
            await raises(ls.SandboxNotReadyError, again.run("cat /tmp/state.txt"))
        else:
            same((await again.run("cat /tmp/state.txt")).stdout, "one\n", "what woke")
            same((await client.get_sandbox_status(sandbox.name)).status, "ready", "the status of what woke")


async def snapshot_lists(context: Context) -> None:
    """Row 15: filter, limits, offsets."""
    async with context.client() as client:
        name = f"Listed-{context.form}-{context.generation[1]}"
        made = [await client.create_snapshot(f"{name}-{n}", context.options["image"], 64 * MIB) for n in range(3)]
        try:
            found = await client.list_snapshots(name_contains=name.lower())
            same({each.id for each in found}, {each.id for each in made}, "the filtered list")
            same(len(await client.list_snapshots(name_contains=name, limit=2)), 2, "a limit")
            rest = await client.list_snapshots(name_contains=name, limit=500, offset=2)
            same(len(rest), 1, "an offset")
            same(len(await client.list_snapshots(name_contains=name, limit=1)), 1, "the least limit")
            for wrong in ({"limit": 0}, {"limit": 501}, {"offset": -1}):
                await raises(ls.ValidationError, client.list_snapshots(**wrong))
        finally:
            for each in made:
                await client.delete_snapshot(each.id)


SCENARIOS = {
    "6": without_waiting,
    "7": too_late,
    "8": too_much,
    "9": quotas,
    "10": renaming,
    "11": lifetimes,
    "12": endings,
    "13": stopping,
    "15": snapshot_lists,
}
