"""A host that is killed at one step of one operation; a process of its own, as ``test_killed_hosts.py`` starts it.

``python -m tests.acceptance.killed_host STATE_DIR OPERATION METHOD before|after``. The steps are the calls through
which a host changes what outlives it, and are found by wrapping those methods here.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from sandboxrt.engine.oci import OciContainer, OciEngine
from sandboxrt.host.host import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.store import Store
from sandboxrt.testing.conformance import run

METHODS: dict[str, tuple[type, str]] = {
    "record": (Store, "add_sandbox"),
    "status": (Store, "set_sandbox_status"),
    "forget": (Store, "remove_sandbox"),
    "make": (OciEngine, "create"),
    "discard": (OciEngine, "discard"),
    "close": (OciContainer, "close"),
}
FILE = "/root/precious"


def set_trap(method: str, when: str) -> None:
    """Die at the next call of a method, before or after it."""
    owner, name = METHODS[method]
    inner: Callable[..., Awaitable[Any]] = getattr(owner, name)

    @functools.wraps(inner)
    async def trapped(*args: Any, **options: Any) -> Any:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        await inner(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, trapped)


async def main(state_dir: Path, operation: str, method: str, when: str) -> None:
    """Never returns: the trap is on the way."""
    async with open_host(HostConfig(state_dir=state_dir, keep=True)) as host:
        if operation != "create":
            await host.create_sandbox(CreateSandbox(name="box", idle_ttl_seconds=0))
            await run(host, "box", f"echo kept > {FILE}; sync")
        if operation == "start":
            await host.stop_sandbox("box")
        set_trap(method, when)
        if operation == "create":
            await host.create_sandbox(CreateSandbox(name="box", idle_ttl_seconds=0))
        elif operation == "stop":
            await host.stop_sandbox("box")
        elif operation == "start":
            await host.start_sandbox("box")
        else:
            await host.delete_sandbox("box")
        with trio.move_on_after(20):
            await trio.sleep_forever()
    raise SystemExit(f"{operation} never came to {method}")


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), *sys.argv[2:])
