"""Keeps the right to talk to a service good: gets a new token before the old one expires.

Source: protocol.md §6 (the margin); that short-lived tokens are used at all before they are replaced is ours.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import attrs
import trio

from sandboxrt.client.flight import SingleFlight
from sandboxrt.client.owner import Owner
from sandboxrt.protocol.rest import ServiceGrant

__all__ = ["GrantKeeper", "check_lifetime", "check_port"]

_MARGIN_S: Final = 30.0
_LONGEST_S: Final = 86400


def check_port(port: int) -> None:
    """Refuse what is no port. Raises ``ValueError``."""
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"port must be an integer from 1 to 65535, not {port!r}")


def check_lifetime(seconds: int) -> None:
    """Refuse a lifetime that no server gives. Raises ``ValueError``."""
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds <= _LONGEST_S:
        raise ValueError(f"expires_in_seconds must be an integer from 1 to {_LONGEST_S}, not {seconds!r}")


def margin(expires_in_seconds: int) -> float:
    """How long before its end a token is replaced: half a minute, of short lives a third."""
    return _MARGIN_S if expires_in_seconds > _MARGIN_S else expires_in_seconds / 3


@attrs.define(eq=False)
class GrantKeeper:
    """One service's grant, good whenever it is asked for.

    Attributes:
        owner: The client's; new grants are fetched in its nursery.
        sandbox: The sandbox's name.
        port: The service's port.
        expires_in_seconds: How long each grant is good.
        headers: Sent to a server with each request for one.
        grant: The newest.
    """

    owner: Owner
    sandbox: str
    port: int
    expires_in_seconds: int
    headers: Mapping[str, str] | None
    grant: ServiceGrant | None = None
    _asked_at: float = 0.0
    _asked_at_wall: float = 0.0
    _flight: SingleFlight[ServiceGrant] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._flight = SingleFlight(self.owner, self._renew)

    async def fresh(self) -> ServiceGrant:
        """The grant, a new one where the old one is near its end; asked for once, however many wait for it.

        Raises:
            SandboxClientError: There is no new one, for the reason given.
        """
        if self.grant is not None and self._age() < self.expires_in_seconds - margin(self.expires_in_seconds):
            await trio.lowlevel.checkpoint_if_cancelled()
            return self.grant
        return await self._flight.fetch()

    def _age(self) -> float:
        """Seconds since it was asked for; a clock that stands still while the machine sleeps is not enough."""
        return max(trio.current_time() - self._asked_at, time.time() - self._asked_at_wall)

    async def _renew(self) -> ServiceGrant:
        # Counted from before the request, so that the server's clock need not agree with ours.
        asked_at, asked_at_wall = trio.current_time(), time.time()
        transport = self.owner.transport.with_headers(self.headers)
        self.grant = await transport.service_url(self.sandbox, self.port, self.expires_in_seconds)
        self._asked_at, self._asked_at_wall = asked_at, asked_at_wall
        return self.grant
