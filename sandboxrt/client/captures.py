"""The making of snapshots of sandboxes: asked for, then waited for."""

from __future__ import annotations

from typing import Final

from sandboxrt.client.transport.base import Transport
from sandboxrt.models import Snapshot
from sandboxrt.protocol.rest import CaptureSnapshot

__all__ = ["capture_and_wait"]

_POLL_S: Final = 0.1
"""How often a server is asked; most captures take some tenths of a second."""


async def capture_and_wait(transport: Transport, sandbox: str, request: CaptureSnapshot, timeout_s: float) -> Snapshot:
    """Begin a capture and wait until it is ready; errors as the client's ``capture_snapshot`` says.

    Cancellation: the capture goes on.
    """
    snapshot = await transport.capture_snapshot(sandbox, request)
    return await transport.wait_for_snapshot(snapshot.id, timeout_s, _POLL_S)
