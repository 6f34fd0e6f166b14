"""Row 32: files in and out."""

from __future__ import annotations

import os

import langsmith.sandbox as ls
from context import Context, check, raises, same


async def files(context: Context) -> None:
    """Text, bytes, empty, 50 MB, odd names, new folders, relative paths, and every kind of refusal."""
    async with context.sandbox() as sandbox:
        for path, content in (
            ("/root/text.txt", "häns\n"),
            ("/root/bytes.bin", bytes(range(256))),
            ("/root/empty", b""),
            ("/new/folders/deep/file", "made"),
            ("/root/ünï cödé +&%41.txt", "odd"),
        ):
            await sandbox.write(path, content)
            wanted = content.encode() if isinstance(content, str) else content
            same(await sandbox.read(path), wanted, f"what was written to {path}")
        await sandbox.write("/root/text.txt", "shorter")
        same(await sandbox.read("/root/text.txt"), b"shorter", "an overwritten file")
        big = os.urandom(1 << 20) * 50
        await sandbox.write("/root/big", big)
        check(await sandbox.read("/root/big") == big, "50 MB come back as they went")
        same((await sandbox.run("stat -c %s /root/big")).stdout, f"{len(big)}\n", "its size inside")
        await sandbox.write("relative.txt", "here")
        same((await sandbox.run("cat /home/user/relative.txt")).stdout, "here", "a relative path")
        same(await sandbox.read("relative.txt"), b"here", "a relative path")


async def refusals(context: Context) -> None:
    """What cannot be read or written is said in the documented way."""
    async with context.sandbox() as sandbox:
        error = await raises(ls.ResourceNotFoundError, sandbox.read("/not/there"))
        same(error.resource_type, "file", "resource_type")
        check("/not/there" in str(error), f"the error names the file: {error}")
        error = await raises(ls.SandboxOperationError, sandbox.read("/usr"))
        same(error.operation, "read", "operation for a folder")
        error = await raises(ls.SandboxOperationError, sandbox.write("/usr", "x"))
        same(error.operation, "write", "operation for a folder")
        error = await raises(ls.SandboxOperationError, sandbox.write("/proc/sys/kernel/hostname", "x"))
        check(error.error_type in ("WriteError", "PermissionDenied"), f"error_type {error.error_type!r}")


SCENARIOS = {"32a": files, "32b": refusals}
