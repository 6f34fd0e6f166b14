"""Finds or makes the package's small C programs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import trio

from sandboxrt.engine.init.compile import CompileError, CompilerTooSlowError, cache_name, compile_program, prebuilt_name
from sandboxrt.errors import EngineUnavailableError

__all__ = ["INIT_SOURCE", "build_tool", "remove_old_tools"]

INIT_SOURCE = Path(__file__).with_name("init.c")
"""The program that runs as pid 1 of every container."""


async def build_tool(source: Path, cache_dir: Path) -> Path:
    """Return the executable of a C file of this package: the wheel's, or one compiled at first use.

    Args:
        source: One self-contained C file.
        cache_dir: Where compiled programs are kept; made when it is missing. Nobody but this user may be able to
            write there: what lies in it is executed.

    Returns:
        Path of the executable. It stays; later calls find it.

    Raises:
        EngineUnavailableError: It had to be compiled and could not be; the message names the packages to install.

    Cancellation: a running compiler is waited for (five minutes at most); the cache then holds its result.
    Source: ours.
    """
    return await trio.to_thread.run_sync(_build_tool_sync, source, cache_dir)


def _build_tool_sync(source: Path, cache_dir: Path) -> Path:
    prebuilt = prebuilt_name(source)
    if os.access(prebuilt, os.X_OK):
        return prebuilt
    try:
        cache_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        target = cache_dir / cache_name(source)
        if not _is_trusted(target):
            compile_program(source, target)
    except CompilerTooSlowError as error:
        raise EngineUnavailableError(
            f"sandboxes need the small program {source.name}, and compiling it took too long ({error}); "
            "try again when this machine has less to do"
        ) from error
    except (CompileError, OSError) as error:
        raise EngineUnavailableError(
            f"sandboxes need the small program {source.name}, and it cannot be compiled here ({error}); "
            "install a C compiler with: apt-get install gcc libc6-dev"
        ) from error
    return target


def remove_old_tools(cache_dir: Path) -> None:
    """Remove the compiled programs that are not of this version of the package. Blocking.

    Whoever runs another version on the same folder compiles them again.
    """
    package = Path(__file__).parents[2]
    current = {cache_name(source) for source in package.rglob("*.c")}
    if cache_dir.is_dir():
        for path in cache_dir.iterdir():
            # A name that begins with a dot is one that is being compiled now.
            if path.name not in current and not path.name.startswith(".") and path.is_file():
                path.unlink(missing_ok=True)


def _is_trusted(target: Path) -> bool:
    try:
        found = target.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
