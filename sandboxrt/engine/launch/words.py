"""What the launcher's and the runtime's last words mean to whoever wanted a sandbox, and what to do about it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

__all__ = ["how_it_ended", "meaning"]

_MAX_LINES = 3
_MAPPABLE = "ext4, xfs and btrfs can, tmpfs from Linux 6.3 on"


def _unmappable(found: re.Match[str]) -> str:
    return (
        f"the file system of {found[1]} cannot be mapped to a sandbox's ids by this kernel ({os.uname().release}): "
        f"use a state folder, and folders for layers, on one that can ({_MAPPABLE})"
    )


def _missing(found: re.Match[str]) -> str:
    return f"this kernel has no {found[1]} file system, or its module is not loaded: sudo modprobe {found[1]}"


def _no_loop(found: re.Match[str]) -> str:
    return f"there are no loop devices ({found[0]}): sudo modprobe loop; a container must be given them"


_MEANINGS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"idmap: (/.*): Invalid argument"), _unmappable),
    (re.compile(r"(overlay|ext4|tmpfs): .*: No such device"), _missing),
    (re.compile(r"disk: (?:/dev/loop\S+|LOOP_CTL_GET_FREE|no free loop device): .*"), _no_loop),
)


def meaning(output: str) -> str:
    """The last lines of what was said, with what is known to be meant by them; empty where nothing was said."""
    lines = [line.strip() for line in output.splitlines()]
    return "; ".join(_meaning(line) for line in [line for line in lines if line][-_MAX_LINES:])


def _meaning(line: str) -> str:
    for pattern, explain in _MEANINGS:
        if found := pattern.fullmatch(line):
            return explain(found)
    return line


def how_it_ended(code: int | None, said: str) -> str:
    """A reason that is never empty: what was said, else how the program ended.

    Args:
        code: Its exit code, or minus the signal that ended it; ``None`` when something else in this process took it.
        said: What it meant, see :func:`meaning`.
    """
    if said:
        return said
    if code is None:
        return "it ended without a word, and something else in this program took its exit code"
    if code < 0:
        return f"it was ended by signal {-code} without a word"
    return "it said that all is well, and there is no process" if code == 0 else f"it ended with {code} without a word"
