"""Who asks: API keys to tenants.

Source: protocol.md §1.2.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, Protocol
from urllib.parse import urlsplit

import attrs
import trio
from starlette.requests import HTTPConnection

from sandboxrt.errors import SandboxAuthenticationError
from sandboxrt.models import Quota
from sandboxrt.store import DEFAULT_TENANT, ApiKey, KeyRecords

__all__ = ["Authenticator", "EveryoneIsDefault", "KeyAuthenticator", "Tenant", "tenant_of"]

_REMEMBERED: Final = 4096
_KEY_BYTES: Final = 512


@attrs.frozen
class Tenant:
    """Who asks.

    Attributes:
        id: As sandboxes and snapshots record it.
        key_id: The key that was shown; requests are counted by it.
        quota: What the key's own quota says.
    """

    id: str
    key_id: str
    quota: Quota = attrs.field(factory=Quota)


class Authenticator(Protocol):
    """Tells who asks by a request's headers."""

    async def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Tenant:
        """Who it is. Raises ``SandboxAuthenticationError``."""
        ...

    def forget(self) -> None:
        """Believe nobody without asking again."""
        ...


class EveryoneIsDefault:
    """No keys: everyone on this machine is the default tenant, but no web page that a browser on it shows.

    A page of a stranger's, or of a program in a sandbox, could otherwise have the browser send requests here, under the
    name of this machine or under one of its own that it has resolve to this address.

    Args:
        public_url: Another name under which requests may come.
    """

    def __init__(self, public_url: str | None = None) -> None:
        self._hosts = {"localhost", "127.0.0.1", "::1"}
        if public_url is not None:
            self._hosts.add((urlsplit(public_url).hostname or "").lower())

    async def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Tenant:
        """The default tenant."""
        await trio.lowlevel.checkpoint()
        for name, value in headers:
            lower = name.lower()
            if lower == b"host" and not self._is_ours(b"//" + value, below=True):
                raise SandboxAuthenticationError("This server has no keys and answers on localhost only")
            foreign = lower == b"sec-fetch-site" and value not in (b"same-origin", b"none")
            if foreign or (lower == b"origin" and not self._is_ours(value)):
                raise SandboxAuthenticationError("This server has no keys and answers no web pages of others")
        return Tenant(DEFAULT_TENANT, "")

    def forget(self) -> None:
        """Nobody is remembered."""

    def _is_ours(self, url: bytes, *, below: bool = False) -> bool:
        """Whether its name is one of this machine; ``below``: or below ``localhost``, where services have theirs."""
        try:
            host = (urlsplit(url.decode("latin-1")).hostname or "").lower()
        except ValueError:
            return False
        return host in self._hosts or (below and host.endswith(".localhost"))


class KeyAuthenticator:
    """Keys of the store.

    Args:
        keys: The records.
        remember_s: How long a good key is believed without asking again, which is how long a revoked one may go on.
    """

    def __init__(self, keys: KeyRecords, remember_s: float = 2.0) -> None:
        self._keys = keys
        self._remember_s = remember_s
        self._known: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} that remembers {len(self._known)} keys>"

    async def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Tenant:
        """Whose key the request has: ``X-Api-Key``, else ``Authorization: Bearer``; of several, the last."""
        given = _key_of(headers)
        if not given:
            raise SandboxAuthenticationError("No API key was sent; send one in the header X-Api-Key")
        now = trio.current_time()
        until, key = self._known.get(given, (0.0, None))
        if key is None or until <= now:
            self._known.pop(given, None)
            key = await self._keys.verify(given)
            if key is None:
                raise SandboxAuthenticationError("The API key is not known here, or was revoked")
            self._known[given] = (now + self._remember_s, key)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return Tenant(key.tenant_id, key.id, key.quota)

    def forget(self) -> None:
        """Ask for every key again: one that was revoked is refused from now on."""
        self._known.clear()


def _key_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    key, bearer = b"", b""
    for name, value in headers:
        match name.lower():
            case b"x-api-key":
                key = value
            case b"authorization" if value[:7].lower() == b"bearer ":
                bearer = value[7:]
    found = (key or bearer).strip()
    return found.decode("latin-1") if len(found) <= _KEY_BYTES else "too long"


def tenant_of(connection: HTTPConnection) -> Tenant:
    """Who sent a request that has been let in."""
    tenant = connection.scope["sandboxrt.tenant"]
    assert isinstance(tenant, Tenant)
    return tenant
