"""What sandboxes wrote, as a layer: of running ones while they stand still, and of stopped ones.

The writable folder of a sandbox with a disk is on no path of the host: its disk is mounted for the container alone. So
it is mounted once more for the copier, in a namespace that ends with it. For a running one that is the very same file
system, found by its loop device, whose image is compared with the sandbox's own; what is in memory only is seen too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import trio

from sandboxrt.engine.base import Captured, Layer, upper_name
from sandboxrt.engine.copy.copier import Copier, Freezer, Mounts
from sandboxrt.engine.damage import ensure_clean
from sandboxrt.engine.launch.plan import DATA_FOLDER, covered_folder
from sandboxrt.engine.loops import wait_detached

__all__ = ["DISK_IMAGE", "capture_running", "capture_stopped", "merge"]

DISK_IMAGE = "disk.img"
_IMAGE_FD = 8
_FIRST_SLOT = 30
_DETACH_S = 10.0


async def capture_running(
    copier: Copier,
    state_dir: Path,
    *,
    first_id: int | None,
    loop: int | None,
    freezer: Freezer,
    target: Path,
    reserve_bytes: int,
) -> Captured:
    """Copy the writable folder of a running container.

    Args:
        copier: What copies.
        state_dir: The sandbox's folder.
        first_id: See :meth:`~sandboxrt.engine.copy.copier.Copier.copy`.
        loop: Number of the loop device that holds its disk; ``None`` where it has none.
        freezer: What makes it stand still.
        target: See :meth:`~sandboxrt.engine.base.Engine.capture`, as for errors and cancellation.
        reserve_bytes: Likewise.
    """
    if loop is None:
        mounts = Mounts((), str(state_dir / DATA_FOLDER / "upper"))
        return await copier.copy(mounts, target, first_id=first_id, reserve_bytes=reserve_bytes, freezer=freezer)
    with _image(state_dir) as image:
        mounts = await _on_disk(copier, state_dir, image, ("share", "data", str(loop), str(_IMAGE_FD)))
        return await copier.copy(mounts, target, first_id=first_id, reserve_bytes=reserve_bytes, freezer=freezer)


async def capture_stopped(
    copier: Copier, state_dir: Path, *, first_id: int | None, target: Path, reserve_bytes: int
) -> Captured:
    """Copy the writable folder that closed containers have left; see :meth:`~sandboxrt.engine.base.Engine.capture`."""
    path = state_dir / DISK_IMAGE
    if not path.exists():
        mounts = Mounts((), str(state_dir / DATA_FOLDER / "upper"))
        return await copier.copy(mounts, target, first_id=first_id, reserve_bytes=reserve_bytes)
    await ensure_clean(path)
    try:
        with _image(state_dir) as image:
            mounts = await _on_disk(copier, state_dir, image, ("disk", "data", str(_IMAGE_FD), "", ""))
            return await copier.copy(mounts, target, first_id=first_id, reserve_bytes=reserve_bytes)
    finally:
        # The next container must not find it mounted still.
        with trio.CancelScope(shield=True), trio.move_on_after(_DETACH_S):
            await wait_detached(path)


async def merge(copier: Copier, layers: tuple[Layer, ...], target: Path, *, reserve_bytes: int = 0) -> Captured:
    """Copy what is seen through layers, topmost first, to ``target/tree/NAME``, one folder for each place of theirs.

    Errors and cancellation are those of :meth:`~sandboxrt.engine.base.Engine.capture`.
    """
    program = await copier.program()
    cover = covered_folder([target, copier.tools, program, *(layer.path for layer in layers)])
    words = ["ns"]
    stacks: dict[str, list[int]] = {}
    for slot, layer in enumerate(layers, _FIRST_SLOT):
        words += ["open", str(slot), str(layer.path)]
        stacks.setdefault(layer.at, []).append(slot)
    words += ["cover", cover, "dir", "empty", "755", "0", "dir", "merged", "755", "0"]
    for at, slots in stacks.items():
        folder = f"merged/{upper_name(at)}"
        lower = ":".join(f"/proc/self/fd/{slot}" for slot in slots)
        words += ["dir", folder, "755", "0", "overlay", folder, f"lowerdir={lower}:empty,redirect_dir=off,metacopy=off"]
    mounts = Mounts(tuple(words), f"{cover}/merged")
    return await copier.copy(mounts, target, first_id=None, reserve_bytes=reserve_bytes)


@contextlib.contextmanager
def _image(state_dir: Path) -> Iterator[int]:
    fd = os.open(state_dir / DISK_IMAGE, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


async def _on_disk(copier: Copier, state_dir: Path, image: int, mount: tuple[str, ...]) -> Mounts:
    cover = covered_folder([state_dir, copier.tools, await copier.program()])
    words = ("ns", "cover", cover, "dir", "data", "700", "0", *mount)
    return Mounts(words, f"{cover}/data/upper", {_IMAGE_FD: image})
