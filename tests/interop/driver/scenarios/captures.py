"""Row 16: snapshots of sandboxes."""

from __future__ import annotations

import langsmith.sandbox as ls
from context import Context, check, raises, same

PLACES = ("/opt", "/usr/local/lib", "/root")


def _name(context: Context, what: str) -> str:
    return f"{what}-{context.form}-{context.generation[1]}"


async def captures(context: Context) -> None:
    """Row 16: what was written is kept, but nothing of ``/tmp`` and no process; captures of captures too."""
    name = _name(context, "captured")
    async with context.client() as client:
        async with await client.sandbox(context.options["snapshot_id"]) as sandbox:
            for place in (*PLACES, "/tmp"):
                await sandbox.write(f"{place}/made.txt", place)
            await sandbox.run("sleep 1000 > /dev/null 2>&1 & echo $! > /opt/pid", shell="/bin/sh")
            snapshot = await sandbox.capture_snapshot(name)
            same((snapshot.status, snapshot.name), ("ready", name), "the snapshot")
            same(snapshot.source_sandbox_id, sandbox.id, "its source")
            check(snapshot.fs_used_bytes, "how much it holds")
            check(snapshot.fs_capacity_bytes, "how much its sandboxes may hold")
            running = await sandbox.run("kill -0 $(cat /opt/pid) && echo runs", shell="/bin/sh")
            same(running.stdout, "runs\n", "what ran when it was captured")
        try:
            async with await client.sandbox(snapshot.id) as copy:
                for place in PLACES:
                    same(await copy.read(f"{place}/made.txt"), place.encode(), place)
                await raises(ls.ResourceNotFoundError, copy.read("/tmp/made.txt"))
                there = await copy.run("kill -0 $(cat /opt/pid) && grep sleep /proc/$(cat /opt/pid)/cmdline")
                check(there.exit_code != 0, "no process came along")
                await copy.write("/opt/made.txt", "changed")
                second = await client.capture_snapshot(copy.name, name + "-again")
            error = await raises(ls.SandboxClientError, client.delete_snapshot(snapshot.id))
            check(name + "-again" in str(error), f"who uses it is named: {error}")
            async with await client.sandbox(snapshot_name=name + "-again") as copy:
                same(await copy.read("/opt/made.txt"), b"changed", "the second capture")
                same(await copy.read("/root/made.txt"), b"/root", "what the first one had")
            await client.delete_snapshot(second.id)
        finally:
            await client.delete_snapshot(snapshot.id)
        missing = await raises(ls.ResourceNotFoundError, client.capture_snapshot("nobody-made-it", name))
        same(missing.resource_type, "sandbox", "resource_type")


async def tags(context: Context) -> None:
    """Row 16: a capture with a tag, which moves to the next one of that name."""
    name = _name(context, "team/tagged")
    async with context.client() as client, await client.sandbox(context.options["snapshot_id"]) as sandbox:
        made = []
        try:
            for text, tag in (("one", "v1"), ("two", "v2"), ("three", "v1"), ("four", None)):
                await sandbox.write("/opt/version", text)
                options = {} if tag is None else {"tag": tag}
                made.append(await client.capture_snapshot(sandbox.name, name, **options))
            for reference, text in ((f"{name}:v1", b"three"), (f"{name}:v2", b"two"), (name, b"four")):
                async with await client.sandbox(snapshot=reference) as copy:
                    same(await copy.read("/opt/version"), text, reference)
            found = await client.get_snapshot(f"{name}:v2")
            same((found.id, list(found.tags)), (made[1].id, ["v2"]), "by name:tag")
            same(list((await client.get_snapshot(made[0].id)).tags), [], "the first one's tags, which moved on")
            refused = client.capture_snapshot(sandbox.name, name, docker_image="app:1")
            error = await raises(ls.ValidationError, refused)
            same(error.field, "docker_image", "the field")
        finally:
            for snapshot in made:
                await client.delete_snapshot(snapshot.id)


SCENARIOS = {"16": captures, "16 tags": tags}
