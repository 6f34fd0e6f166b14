"""Rows 25, 26, 33 and 34: connections that break, and servers that refuse for a while."""

from __future__ import annotations

import langsmith.sandbox as ls
from context import Context, raises, same

# Numbered lines of multi-byte text with pauses: whatever is lost, repeated or reordered shows.
WORDS = "äöü 世界 😀 " + "x" * 40
TALK = 'for i in $(seq 1 {lines}); do echo "zeile $i {words}"; sleep {pause}; done'


def _talk(lines: int, pause: float = 0.01) -> tuple[str, str]:
    command = TALK.format(lines=lines, pause=pause, words=WORDS)
    output = "".join(f"zeile {i} {WORDS}\n" for i in range(1, lines + 1))
    return command, output


async def dropped(context: Context) -> None:
    """Row 25: the TCP connection goes in the middle of the output, at odd places."""
    async with context.sandbox() as sandbox:
        # Less than 150 bytes is before the command is known to have started, which only the newest client survives.
        for after in (*((1, 37, 64) if context.newest else ()), 150, 333, 1000, 2500):
            context.faults(socket={"after_bytes": after, "close": "abort", "times": 1})
            command, output = _talk(60)
            handle = await sandbox.run(command, wait=False)
            same((await handle.result).stdout, output, f"the output with a cut after {after} bytes")
            same(handle.last_stdout_offset, len(output.encode()), "the last offset")
            same(context.faults(seen=True)["cuts"], 1, "cuts")
            context.faults(forget=True)


async def closed(context: Context) -> None:
    """Row 26: the server closes with a code before the exit."""
    async with context.sandbox() as sandbox:
        for code in (1011, 1012, 1000, 1001):
            context.faults(socket={"after_bytes": 100, "close": code, "times": 1})
            command, output = _talk(40)
            handle = await sandbox.run(command, wait=False)
            if context.seed and code in (1000, 1001):
                await raises(ls.SandboxOperationError, _result(handle))
            else:
                same((await _result(handle)).stdout, output, f"the output with close {code}")
            same(context.faults(seen=True)["cuts"], 1, "cuts")
            context.faults(forget=True)


async def refused(context: Context) -> None:
    """Row 33: three handshakes get a 503; the command runs once."""
    async with context.sandbox() as sandbox:
        context.faults(handshake={"status": 503, "times": 3})
        result = await sandbox.run("echo ran >> /tmp/count; echo done")
        same(result.stdout, "done\n", "its output")
        seen = context.faults(seen=True)
        context.faults(forget=True)
        same((await sandbox.run("cat /tmp/count")).stdout, "ran\n", "it ran once")
        posted = any(path.endswith("/execute") for path in seen["paths"])
        same(posted, context.seed, "whether HTTP was used instead")


async def unstarted(context: Context) -> None:
    """Row 34: the socket closes before it said that the command runs."""
    async with context.sandbox() as sandbox:
        # 0.11.1 tries again after a clean close only.
        for code in (1000, 1011) if context.newest else (1011,) if context.seed else (1000,):
            context.faults(socket={"after_bytes": 0, "close": code, "times": 1})
            run = sandbox.run("echo ran >> /tmp/count; echo done", wait=False)
            if context.seed:
                await raises((ls.SandboxOperationError, ls.SandboxConnectionError), run)
            else:
                same((await (await run).result).stdout, "done\n", "its output")
            context.faults(forget=True)
            same((await sandbox.run("cat /tmp/count; rm /tmp/count")).stdout, "ran\n", "it ran once")


async def _result(handle: object) -> ls.ExecutionResult:
    return await handle.result  # type: ignore[attr-defined, no-any-return]


SCENARIOS = {"25": dropped, "26": closed, "33": refused, "34": unstarted}
