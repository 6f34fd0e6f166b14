"""Whether the code that runs here runs on trio."""

from __future__ import annotations

import sys

import trio

__all__ = ["require_trio"]


def require_trio() -> None:
    """Refuse any other event loop, with the import that is right there.

    Raises:
        RuntimeError: This is not a trio task.
    """
    if not trio.lowlevel.in_trio_task():
        where, use = "no event loop is running here: in blocking code", "from sandboxrt import SandboxClient"
        if "asyncio" in sys.modules and _in_asyncio():
            where, use = (
                "an asyncio loop is running here: under asyncio",
                "from sandboxrt.aio import AsyncSandboxClient",
            )
        raise RuntimeError(f"sandboxrt.AsyncSandboxClient runs on trio, and {where} use `{use}`")


def _in_asyncio() -> bool:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
