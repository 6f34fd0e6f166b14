"""Errors that a host and a client of a server word alike, so that the same mistake reads the same both ways."""

from __future__ import annotations

import errno
import os

from sandboxrt.errors import ResourceNotFoundError, SandboxNotReadyError

__all__ = ["file_not_found", "not_ready"]

_HINTS = {
    "provisioning": "wait_for_sandbox() waits until it is",
    "stopped": "start it first",
}


def file_not_found(path: str, sandbox: str) -> ResourceNotFoundError:
    """There is no such file; the words of protocol.md §3.4, and those that programs look for."""
    return ResourceNotFoundError(
        f"File '{path}' not found in sandbox '{sandbox}' ({os.strerror(errno.ENOENT)})", "file"
    )


def not_ready(name: str, status: str, reason: str | None = None) -> SandboxNotReadyError:
    """A sandbox is not ready: why, where that is known, and what to do, where something can be done."""
    text = f"Sandbox '{name}' is not ready (status: {status})"
    more = "; ".join(part for part in (_HINTS.get(status), reason) if part)
    return SandboxNotReadyError(f"{text}: {more}" if more else text)
