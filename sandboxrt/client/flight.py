"""One call for all who want the same thing at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import attrs
import trio

from sandboxrt.client.owner import Owner
from sandboxrt.errors import ClientClosedError

__all__ = ["SingleFlight"]

T = TypeVar("T")


@attrs.define(eq=False)
class _Flight(Generic[T]):
    landed: trio.Event = attrs.field(factory=trio.Event)
    value: T | None = None
    error: Exception | None = None


@attrs.define(eq=False)
class SingleFlight(Generic[T]):
    """Makes a call in the client's nursery, once for all who wait for it meanwhile.

    Attributes:
        owner: The client's.
        call: What is called.
    """

    owner: Owner
    call: Callable[[], Awaitable[T]]
    _flight: _Flight[T] | None = None

    async def fetch(self) -> T:
        """What the call gives, or raises, to everyone who waits.

        Raises:
            ClientClosedError: The client is closed, or was meanwhile.

        Cancellation: The call goes on, for the others; it ends with the client.
        """
        if self.owner.closed:
            raise ClientClosedError("the client is closed")
        flight = self._flight
        if flight is None:
            flight = self._flight = _Flight()
            self.owner.start(self._fly)
        await flight.landed.wait()
        if flight.error is not None:
            raise flight.error
        return flight.value  # type: ignore[return-value]

    async def _fly(self) -> None:
        flight = self._flight
        assert flight is not None
        flight.error = ClientClosedError("the client was closed")
        try:
            flight.value = await self.call()
            flight.error = None
        except Exception as error:  # noqa: BLE001  raised where it is waited for
            flight.error = error
        finally:
            self._flight = None
            flight.landed.set()
