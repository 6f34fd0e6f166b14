"""The loop devices that hold sandboxes' disks: whose each is, and when one is free again.

Device nodes never go away, so a machine has as many as it ever had sandboxes at once, and to look at all of them takes
milliseconds: it is done once for many questions, and not at all where the device is known.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import trio

from sandboxrt.threads import run_blocking

__all__ = ["SYS_BLOCK", "backings", "detach_loops_below", "loops_below", "wait_detached"]

SYS_BLOCK = Path("/sys/block")
_NAME = re.compile(r"loop\d+")
_CLR_FD = 0x4C01
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.0005, 0.1
_FREE_S = 5.0


def backings(sys_block: Path = SYS_BLOCK) -> dict[str, str]:
    """The images of all loop devices that have one, by name, e.g. ``{"loop3": "/x/disk.img"}``. Blocking."""
    with contextlib.suppress(FileNotFoundError):
        names = (name for name in os.listdir(sys_block) if _NAME.fullmatch(name))
        return {name: image for name in names if (image := _backing(sys_block, name))}
    return {}


def _backing(sys_block: Path, name: str) -> str:
    try:
        with open(f"{sys_block}/{name}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""  # it has none


def loops_below(folder: Path, seen: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The loop devices whose image is (or was) below ``folder``, e.g. ``("loop3",)``. Blocking.

    Args:
        folder: The folder.
        seen: What :func:`backings` said, for those who ask for many folders; looked for where left out.
    """
    prefix = f"{folder.resolve()}/"
    found = (backings() if seen is None else seen).items()
    return tuple(sorted(name for name, image in found if image.startswith(prefix)))


async def wait_detached(image: Path, loop: int | None = None, sys_block: Path = SYS_BLOCK) -> None:
    """Wait until no loop device holds an image any more: it frees itself some time after its last mount is gone.

    Args:
        image: The image.
        loop: Number of the one device that may hold it; looked for where left out.
        sys_block: Where the kernel lists devices.

    Cancellation: can be called again.
    """

    def find() -> tuple[list[str], str]:
        path = str(image.resolve())
        if loop is not None:
            return [f"loop{loop}"], path
        return [name for name, backing in backings(sys_block).items() if backing == path], path

    names, path = await run_blocking(None, find)
    await _wait_other(names, {path}, sys_block)


async def detach_loops_below(folder: Path, sys_block: Path = SYS_BLOCK, *, wait_s: float = _FREE_S) -> list[str]:
    """Free the loop devices whose image is (or was) below ``folder``.

    A device that somebody else has open (udev at each new one; a mount) is freed by the kernel once they close it.

    Args:
        folder: The folder.
        sys_block: Where the kernel lists devices.
        wait_s: How long to wait for that.

    Returns:
        The names of the devices that are free now, e.g. ``["loop3"]``.

    Cancellation: can be called again; the devices that are in use are freed all the same.
    """
    asked = await run_blocking(None, lambda: _detach_loops_below(folder.resolve(), sys_block))
    with trio.move_on_after(wait_s):
        await _wait_other(list(asked), set(asked.values()), sys_block)
    return await run_blocking(
        None, lambda: [name for name, image in asked.items() if _backing(sys_block, name) != image]
    )


def _detach_loops_below(folder: Path, sys_block: Path) -> dict[str, str]:
    """Ask the kernel to free them; the name and image of each that was asked for."""
    asked = {}
    for name in loops_below(folder, backings(sys_block)):
        with contextlib.suppress(OSError):
            device = os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
            try:
                # Open, it can no longer be freed and taken by another; look again at whose it is.
                image = _backing(sys_block, name)
                if image.startswith(f"{folder}/"):
                    fcntl.ioctl(device, _CLR_FD)
                    asked[name] = image
            finally:
                os.close(device)
    return asked


async def _wait_other(names: Collection[str], images: Collection[str], sys_block: Path) -> None:
    """Wait until none of the devices has one of the images."""
    pause_s = _FIRST_PAUSE_S
    while await run_blocking(None, lambda: any(_backing(sys_block, name) in images for name in names)):
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)
