"""Rows 17 to 24, 30 and 31: one command at a time."""

from __future__ import annotations

import asyncio
import inspect
import time

import langsmith.sandbox as ls
from context import Context, check, raises, same

AWKWARD = r"""
import os, sys
text = "0123456789abcdef" * 65536 * 3 + "\n" + ("h\u00e9llo \u4e16\u754c \U0001f600\n" * 200000)
data = text.encode() + b"bad \xff\xfe bytes \xe4\xb8\n"
data += b"tail\n" * ((10485760 - len(data)) // 5)
step = 8191
for at in range(0, len(data), step):
    os.write(1, data[at:at+step])
"""


async def running(context: Context) -> None:
    """Row 17: output, exit codes, environment, folder, shell."""
    async with context.sandbox() as sandbox:
        result = await sandbox.run("echo out; echo err >&2; exit 3")
        same((result.stdout, result.stderr, result.exit_code), ("out\n", "err\n", 3), "a command")
        check(not result.success, "it was no success")
        same((await sandbox.run("exit 1")).exit_code, 1, "exit 1")
        result = await sandbox.run('echo "$A|$B"', env={"A": "1", "B": "zwei drei"})
        same(result.stdout, "1|zwei drei\n", "env")
        same((await sandbox.run("pwd", cwd="/usr/lib")).stdout, "/usr/lib\n", "cwd")
        same((await sandbox.run("echo $0", shell="/bin/sh")).stdout, "/bin/sh\n", "shell")
        same((await sandbox.run("echo $0")).stdout, "/bin/bash\n", "the default shell")
        error = await raises(ls.SandboxOperationError, sandbox.run("pwd", cwd="/not/there"))
        check("/not/there" in str(error), f"the error names the folder: {error}")


async def streaming(context: Context) -> None:
    """Row 18: a handle, its chunks, its result."""
    async with context.sandbox() as sandbox:
        handle = await sandbox.run("for i in 1 2 3; do echo $i; echo e$i >&2; sleep 0.2; done", wait=False)
        check(handle.command_id and handle.pid > 0, "it has an id and a pid")
        seen = []
        async for chunk in handle:
            seen.append(chunk)
            break
        seen += [chunk async for chunk in handle]
        text = {name: "".join(c.data for c in seen if c.stream == name) for name in ("stdout", "stderr")}
        same(text, {"stdout": "1\n2\n3\n", "stderr": "e1\ne2\ne3\n"}, "the chunks of two loops")
        result = await handle.result
        same((result.stdout, result.stderr, result.exit_code), ("1\n2\n3\n", "e1\ne2\ne3\n", 0), "the result")
        same([chunk async for chunk in handle], [], "a loop over what is exhausted")


async def callbacks(context: Context) -> None:
    """Row 19: callbacks, in order and complete."""
    async with context.sandbox() as sandbox:
        out: list[str] = []
        err: list[str] = []
        result = await sandbox.run(
            "for i in 1 2 3; do echo $i; echo e$i >&2; sleep 0.05; done", on_stdout=out.append, on_stderr=err.append
        )
        same(("".join(out), "".join(err)), (result.stdout, result.stderr), "what the callbacks saw")
        same(result.stdout, "1\n2\n3\n", "stdout")
        await raises(ValueError, sandbox.run("true", wait=False, on_stdout=out.append))


async def timeout(context: Context) -> None:
    """Row 20: the time limit ends the command and all it started."""
    async with context.sandbox() as sandbox:
        error = await raises(ls.CommandTimeoutError, sandbox.run("sleep 4711 & sleep 4711", timeout=1))
        check(str(error).endswith(" [CommandTimeout]"), f"its text: {error}")
        left = await sandbox.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 4711' || true")
        # The command line of the shell that looks has the words too.
        check(int(left.stdout) <= 1, f"processes left: {left.stdout}")
        left = await sandbox.run("pgrep -x sleep || echo none")
        same(left.stdout, "none\n", "processes left")


async def no_timeout(context: Context) -> None:
    """Row 21: with a limit of 0 a command runs beyond the default of 60 seconds."""
    async with context.sandbox() as sandbox:
        started = time.monotonic()
        result = await sandbox.run("sleep 62; echo done", timeout=0)
        same(result.stdout, "done\n", "its output")
        check(time.monotonic() - started > 61, "it ran that long")


async def kill(context: Context) -> None:
    """Row 22: a kill from elsewhere; the exit code comes with a reconnect."""
    async with context.sandbox() as sandbox:
        handle = await sandbox.run("echo up; sleep 4712 & sleep 4712", timeout=0, wait=False)

        async def killer() -> None:
            await asyncio.sleep(0.3)
            await handle.kill()

        join = await context.aside(killer)
        try:
            async for _ in handle:
                pass
            context.notes["iteration"] = "ended"
        except ls.SandboxConnectionError:
            context.notes["iteration"] = "connection error"
        await join()
        code = (await (await sandbox.reconnect(handle.command_id)).result).exit_code
        check(code != 0, "a code that is not 0")
        same(code, 137, "the code of a kill")
        same((await sandbox.run("pgrep -x sleep || echo none")).stdout, "none\n", "processes left")


async def stdin(context: Context) -> None:
    """Row 23: input for a command."""
    async with context.sandbox() as sandbox:
        options = {"close_input": False} if context.newest else {}
        handle = await sandbox.run('read a; read b; echo "$a and $b"', wait=False, **options)
        await handle.send_input("häns\n")
        await handle.send_input("gretel\n")
        same((await handle.result).stdout, "häns and gretel\n", "what was read")


async def no_stdin(context: Context) -> None:
    """Row 24: a reader without input: blocked for old clients, at its end for the newest."""
    async with context.sandbox() as sandbox:
        if "close_input" in inspect.signature(ls.Sandbox.run).parameters:
            same((await sandbox.run("cat; echo ended", timeout=10)).stdout, "ended\n", "after the end of input")
        else:
            await raises(ls.CommandTimeoutError, sandbox.run("cat", timeout=1))


async def terminal(context: Context) -> None:
    """Row 30: a terminal, stderr merged, and a conversation."""
    async with context.sandbox() as sandbox:
        result = await sandbox.run("tty; test -t 0 && test -t 1 && echo terminal; echo err >&2", pty=True)
        lines = result.stdout.replace("\r\n", "\n").split("\n")
        check(lines[0].startswith("/dev/pts/"), f"a terminal's name: {lines}")
        same((lines[1:3], result.stderr), (["terminal", "err"], ""), "the rest")
        handle = await sandbox.run("python3", pty=True, wait=False, timeout=30)
        await handle.send_input("print(6 * 7)\n")
        await handle.send_input("exit()\n")
        result = await handle.result
        check("42" in result.stdout, f"Python answers: {result.stdout!r}")
        same(result.exit_code, 0, "its exit code")


async def much_output(context: Context) -> None:
    """Row 31: 10 MiB with a line of 3 MiB, invalid UTF-8 and split characters."""
    async with context.sandbox() as sandbox:
        await sandbox.write("/tmp/awkward.py", AWKWARD)
        handle = await sandbox.run("python3 /tmp/awkward.py", wait=False)
        offset = 0
        biggest = 0
        async for chunk in handle:
            same(chunk.offset, offset, "the offset of a chunk")
            offset += len(chunk.data.encode())
            biggest = max(biggest, len(chunk.data.encode()))
        result = await handle.result
        same(len(result.stdout.encode()), handle.last_stdout_offset, "the last offset")
        same(offset, handle.last_stdout_offset, "the sum of the chunks")
        check(offset >= 10 * 1024**2, f"{offset} bytes")
        check(biggest <= 65536, f"frames of at most 64 KiB, not {biggest}")
        check("bad \ufffd\ufffd bytes \ufffd\n" in result.stdout, "invalid bytes are U+FFFD")
        same(result.stdout.count("h\u00e9llo \u4e16\u754c \U0001f600\n"), 200000, "whole characters")


SCENARIOS = {
    "17": running,
    "18": streaming,
    "19": callbacks,
    "20": timeout,
    "21": no_timeout,
    "22": kill,
    "23": stdin,
    "24": no_stdin,
    "30": terminal,
    "31": much_output,
}
