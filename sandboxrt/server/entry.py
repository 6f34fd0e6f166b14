"""How a request was let in, kept with it for as long as it is under way.

Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from starlette.requests import HTTPConnection

from sandboxrt.errors import SandboxAuthenticationError
from sandboxrt.server.auth import Authenticator, Tenant
from sandboxrt.server.limits import Admission

__all__ = ["Entry", "entry_of"]

_SCOPE = "sandboxrt.entry"


@attrs.frozen
class Entry:
    """A request that was let in; a socket may step out between two commands, and has to ask to come in again."""

    tenant: Tenant
    _authenticator: Authenticator
    _headers: Iterable[tuple[bytes, bytes]]
    _admission: Admission

    def note(self, scope: object) -> None:
        """Keep it with its request."""
        assert isinstance(scope, dict)
        scope[_SCOPE] = self

    def step_out(self) -> None:
        """Count as a request of its key no more."""
        self._admission.leave()

    async def come_in(self) -> None:
        """Be let in again, by the same key.

        Raises:
            SandboxAuthenticationError: The key is good no more.
            TooFastError: It asks too often, or has too much under way.
        """
        tenant = await self._authenticator.authenticate(self._headers)
        if (tenant.id, tenant.key_id) != (self.tenant.id, self.tenant.key_id):
            raise SandboxAuthenticationError("The API key means somebody else now")
        self._admission.enter()


def entry_of(connection: HTTPConnection) -> Entry | None:
    """How a request was let in; ``None`` where nobody is asked who they are."""
    found = connection.scope.get(_SCOPE)
    return found if isinstance(found, Entry) else None
