"""Runs ``shift.py`` on the disk of a sandbox that is at rest, in mounts of its own."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Final

import trio

from sandboxrt.engine.capture import DISK_IMAGE
from sandboxrt.engine.damage import ensure_clean
from sandboxrt.engine.launch.plan import DATA_FOLDER, covered_folder
from sandboxrt.engine.launch.program import run_launcher
from sandboxrt.engine.loops import wait_detached
from sandboxrt.errors import ResourceCreationError

__all__ = ["move_owners"]

_SHIFT: Final = Path(__file__).with_name("shift.py")
_IMAGE_FD: Final = 8
_TIMEOUT_S: Final = 600.0
_DETACH_S: Final = 10.0


async def move_owners(launcher: Path, state_dir: Path, old: int, new: int) -> None:
    """See :meth:`~sandboxrt.engine.base.Engine.move_owners`."""
    image = state_dir / DISK_IMAGE
    python = Path(sys.executable)
    words = ("exec", str(python), "-I", "-S", str(_SHIFT))
    if not image.exists():
        await _run(launcher, ["ns", *words, str(state_dir / DATA_FOLDER), str(old), str(new)], {})
        return
    await ensure_clean(image)
    needed = [state_dir, _SHIFT, python, *(Path(each) for each in (sys.prefix, sys.base_prefix))]
    cover = covered_folder([each for path in needed for each in (path, path.resolve())])
    mounts = ["ns", "cover", cover, "dir", "data", "700", "0", "disk", "data", str(_IMAGE_FD), "", ""]
    with contextlib.ExitStack() as stack:
        fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        try:
            await _run(launcher, [*mounts, *words, f"{cover}/data", str(old), str(new)], {_IMAGE_FD: fd})
        finally:
            # The container must not find it mounted still.
            with trio.CancelScope(shield=True), trio.move_on_after(_DETACH_S):
                await wait_detached(image)


async def _run(launcher: Path, words: list[str], fds: dict[int, int]) -> None:
    done = await run_launcher(launcher, words, fds, timeout_s=_TIMEOUT_S)
    if done.code != 0:
        lines = done.output.strip().splitlines()
        reason = "it took too long" if done.timed_out else (lines[-1] if lines else f"exit code {done.code}")
        raise ResourceCreationError(
            "another sandbox of this machine has the same user ids, and the files of this one could not be given to "
            f"others: {reason}; stop that one (of another state folder) first, or try again",
            "sandbox",
            "UidBlock",
        )
