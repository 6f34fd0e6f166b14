"""Row 40: what only the newest client has."""

from __future__ import annotations

import os

import langsmith.sandbox as ls
from context import Context, check, raises, same


async def stat_and_ranges(context: Context) -> None:
    """stat and read_range."""
    async with context.sandbox() as sandbox:
        await sandbox.write("/root/data", b"0123456789")
        stat = await sandbox.stat("/root/data")
        same(stat.size_bytes, 10, "size")
        check(stat.etag and stat.last_modified, f"etag and time: {stat}")
        chunk = await sandbox.read_range("/root/data", start=2, end=4)
        same((chunk.content, chunk.start, chunk.total_bytes, chunk.partial), (b"234", 2, 10, True), "a range")
        same((await sandbox.read_range("/root/data", start=7)).content, b"789", "an open range")
        same((await sandbox.read_range("/root/data", suffix_bytes=3)).content, b"789", "a suffix")
        same((await sandbox.read_range("/root/data", start=5, end=500)).content, b"56789", "an end beyond the file")
        same((await sandbox.read_range("/root/data", start=0, if_none_match=stat.etag)).unchanged, True, "unchanged")
        await sandbox.write("/root/data", b"changed!")
        changed = await sandbox.read_range("/root/data", start=2, end=4, if_range=stat.etag)
        same((changed.content, changed.partial), (b"changed!", False), "a range of what has changed")
        await raises(ls.SandboxOperationError, sandbox.read_range("/root/data", start=100))
        await raises(ls.ResourceNotFoundError, sandbox.stat("/not/there"))


async def searching(context: Context) -> None:
    """glob, ls and grep."""
    async with context.sandbox() as sandbox:
        for path, content in (
            ("/srv/a.py", "import os\nneedle = 1\n"),
            ("/srv/b.txt", "needle\n"),
            ("/srv/sub/c.py", "x\n"),
        ):
            await sandbox.write(path, content)
        found = await sandbox.glob("**/*.py", "/srv")
        same(sorted(each.path for each in found), ["/srv/a.py", "/srv/sub/c.py"], "glob")
        same(found.truncated, False, "truncated")
        listed = {each.path: each.is_dir for each in await sandbox.ls("/srv")}
        same(listed, {"/srv/a.py": False, "/srv/b.txt": False, "/srv/sub": True}, "ls")
        hits = await sandbox.grep("needle", "/srv")
        same(
            sorted((hit.path, hit.line, hit.text) for hit in hits),
            [("/srv/a.py", 2, "needle = 1"), ("/srv/b.txt", 1, "needle")],
            "grep",
        )
        hits = await sandbox.grep("needle", "/srv", glob="*.txt")
        same([hit.path for hit in hits], ["/srv/b.txt"], "grep with a filter")
        few = await sandbox.glob("**", "/usr/share", limit=3)
        same((len(few), few.truncated), (3, True), "a limit")


async def server_sent_events(context: Context) -> None:
    """Execution over server-sent events instead of a WebSocket."""
    os.environ["LANGSMITH_EXPERIMENTAL_FEATURES"] = "sandbox_sse_exec"
    try:
        context.faults(forget=True)
        async with context.sandbox() as sandbox:
            handle = await sandbox.run("echo out; echo fehler ü >&2; sleep 0.3; echo more; exit 4", wait=False)
            chunks = [chunk async for chunk in handle]
            result = await handle.result
            same((result.stdout, result.stderr, result.exit_code), ("out\nmore\n", "fehler ü\n", 4), "the result")
            same("".join(c.data for c in chunks if c.stream == "stdout"), "out\nmore\n", "the chunks")
            big = await sandbox.run("head -c 5000000 /dev/zero | tr '\\0' x")
            same((len(big.stdout), big.exit_code), (5_000_000, 0), "much output")
            await raises(ls.CommandTimeoutError, sandbox.run("sleep 30", timeout=1))
        check(any("/execute/stream/start" in path for path in context.faults(seen=True)["paths"]), "it was used")
    finally:
        del os.environ["LANGSMITH_EXPERIMENTAL_FEATURES"]


async def run_config(context: Context) -> None:
    """A run configuration, of the sandbox and of a command."""
    config = ls.RunConfig(user="nobody", work_dir="/usr", env_vars={"COLOUR": "blue"})
    async with context.sandbox() as sandbox:
        result = await sandbox.run("id -un; pwd; echo $COLOUR", run_config=config)
        same(result.stdout, "nobody\n/usr\nblue\n", "of a command")
        await raises(ValueError, sandbox.run("true", run_config=config, cwd="/"))
    async with context.sandbox(run_config=config) as sandbox:
        same((await sandbox.run("id -un; pwd; echo $COLOUR")).stdout, "nobody\n/usr\nblue\n", "of a sandbox")


SCENARIOS = {
    "40 stat": stat_and_ranges,
    "40 search": searching,
    "40 sse": server_sent_events,
    "40 run_config": run_config,
}
