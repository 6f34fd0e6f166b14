"""Renews the lease of one sandbox for as long as its owner's nursery lives.

Source: ours; servers without leases never grant one.
"""

from __future__ import annotations

import logging

import attrs
import trio

from sandboxrt.client.transport.base import Transport
from sandboxrt.errors import ResourceNotFoundError, SandboxClientError

__all__ = ["LEASE_S", "LeaseKeeper"]

LEASE_S = 60
"""How long a sandbox outlives an owner that died without a word."""
_RENEWALS = 4
"""How many renewals are tried in the time of one lease."""

_log = logging.getLogger("sandboxrt.client")


@attrs.define(eq=False)
class LeaseKeeper:
    """An actor without a mailbox: ``run`` is its life, ``end`` its end."""

    _transport: Transport
    _sandbox_id: str
    _seconds: int
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def run(self) -> None:
        """Renew until ``end``, or until there is nothing to renew any more. Never raises."""
        with self._scope:
            while True:
                await trio.sleep(self._seconds / _RENEWALS)
                try:
                    with trio.move_on_after(self._seconds):
                        await self._transport.renew_lease(self._sandbox_id, self._seconds)
                except ResourceNotFoundError:
                    return
                except SandboxClientError as error:
                    # The next renewal may do better; if none does, whoever uses the sandbox is told that it is gone.
                    _log.warning("the lease of sandbox %s could not be renewed: %s", self._sandbox_id, error)

    def end(self) -> None:
        """Renew no more."""
        self._scope.cancel()
