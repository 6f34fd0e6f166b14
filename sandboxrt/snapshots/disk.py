"""Slow work on layer folders: in a worker thread as root, through a user namespace for everybody else."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import trio

from sandboxrt.errors import ResourceCreationError, SandboxClientError
from sandboxrt.snapshots import tidy
from sandboxrt.snapshots.tools import ToolResult, run_tool
from sandboxrt.store import run_blocking

__all__ = ["give_to_sandboxes", "namespace_prefix", "remove_tree", "tidy_tree"]


@cache
def namespace_prefix() -> tuple[str, ...]:
    """What to put before a command so that it acts for all owners in an image; nothing as root, or without subuids.

    Inside, root is the user itself and the ids from 1 on are its first subordinate ids.
    """
    if os.geteuid() == 0 or shutil.which("newuidmap") is None or shutil.which("unshare") is None:
        return ()
    user = pwd.getpwuid(os.geteuid()).pw_name
    for table in ("/etc/subuid", "/etc/subgid"):
        try:
            owners = {line.split(":")[0] for line in Path(table).read_text(encoding="utf-8").splitlines()}
        except OSError:
            return ()
        if not owners & {user, str(os.geteuid())}:
            return ()
    return ("unshare", "--user", "--map-root-user", "--map-auto", "--")


def _program(action: str, path: Path, *more: str) -> list[str]:
    return [*namespace_prefix(), sys.executable, "-I", "-S", tidy.__file__, action, str(path), *more]


def _last_line(result: ToolResult) -> str:
    return result.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"exit code {result.exit_code}"


async def remove_tree(path: Path, limiter: trio.CapacityLimiter) -> None:
    """Remove a folder and all in it. Harmless where it is gone.

    Raises:
        SandboxClientError: It could not be removed; the message has the reason.

    Cancellation: partial; call it again.
    """
    if not namespace_prefix():
        try:
            await run_blocking(limiter, lambda: tidy.remove(str(path)))
        except OSError as error:
            raise SandboxClientError(f"Cannot remove {path}: {error}") from error
        return
    result = await run_tool(_program("remove", path))
    if result.exit_code != 0:
        raise SandboxClientError(f"Cannot remove {path}: {_last_line(result)}")


async def tidy_tree(path: Path, limiter: trio.CapacityLimiter) -> int:
    """Make an unpacked image safe to be a layer, and return its size in bytes.

    Raises:
        ResourceCreationError: It could not be walked.
    """
    if not namespace_prefix():
        return await run_blocking(limiter, lambda: tidy.tidy(str(path)))
    result = await run_tool(_program("tidy", path))
    if result.exit_code != 0:
        raise ResourceCreationError(f"Cannot walk the unpacked image: {_last_line(result)}", "snapshot", "ImageUnpack")
    return int(result.stdout)


async def give_to_sandboxes(path: Path, owners: Mapping[str, int] = MappingProxyType({})) -> None:
    """Make the owners in a finished layer those that sandboxes see; nothing as root, where layers are mapped instead.

    An unprivileged user's sandboxes have the subordinate ids and not the user's own: their root is nobody else on the
    host. Without subordinate ids there are no such sandboxes, and nothing changes.

    Args:
        path: The layer.
        owners: Ids, as sandboxes see them, of what does not belong to their root although the user made it.

    Raises:
        ResourceCreationError: It could not be done; the message has the reason.

    Cancellation: partial; the layer is not to be used then.
    """
    if not namespace_prefix():
        return
    result = await run_tool(_program("shift", path, *(f"{name}={number}" for name, number in owners.items())))
    if result.exit_code != 0:
        raise ResourceCreationError(f"Cannot give {path} to sandboxes: {_last_line(result)}", "snapshot", "ImageUnpack")
