"""Why a command was killed, in words, where its exit code alone is a mystery."""

from __future__ import annotations

from typing import Final

__all__ = ["blame"]

_KILLED: Final = 137
_UNITS: Final = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))


def blame(exit_code: int, mem_bytes: int | None) -> str | None:
    """What to say of a command that ended while its sandbox ran out of memory; ``None`` where that did not end it.

    The kernel counts for the whole sandbox. Only a command that was killed itself is told so: any other may have lost a
    child, or have nothing to do with it.

    Args:
        exit_code: How it ended.
        mem_bytes: The sandbox's limit.
    """
    if exit_code != _KILLED:
        return None
    if mem_bytes is None:
        return "Killed for lack of memory: the sandbox has no limit of its own (mem_bytes), and this machine ran out"
    return (
        f"Killed for lack of memory: the sandbox used up its {_shown(mem_bytes)} (mem_bytes={mem_bytes}); "
        "create it with more"
    )


def _shown(size_bytes: int) -> str:
    for unit, factor in _UNITS:
        if size_bytes >= factor:
            return f"{size_bytes / factor:.4g} {unit}"
    return f"{size_bytes} bytes"
