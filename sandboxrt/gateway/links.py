"""Makes what the holder of a link has: addresses with tokens.

Source: protocol.md §2.6, §2.7.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, Protocol

import attrs

from sandboxrt.models import DownloadURL
from sandboxrt.protocol.rest import CreateDownloadLink, ServiceGrant
from sandboxrt.protocol.service_urls import ServiceSite
from sandboxrt.protocol.tokens import DownloadClaims, ServiceClaims, TokenKey, issue_download, issue_service

__all__ = ["FixedKeys", "Keys", "Links", "RememberedKeys"]

Purpose = Literal["service", "download"]


class Keys(Protocol):
    """Where the keys come from."""

    async def keys(self, purpose: Purpose) -> tuple[TokenKey, ...]:
        """Those that verify; the first one signs."""
        ...


@attrs.frozen
class FixedKeys:
    """The same key for everything, for as long as this object lives."""

    key: TokenKey

    async def keys(self, purpose: Purpose) -> tuple[TokenKey, ...]:
        """It alone."""
        return (self.key,)


class RememberedKeys:
    """Keys that are not asked for with every request.

    Args:
        source: Where they come from.
        remember_s: How long they are believed, which is how long a retired one may go on.
        clock: What counts the seconds.
    """

    def __init__(self, source: Keys, remember_s: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._remember_s = remember_s
        self._clock = clock
        self._known: dict[Purpose, tuple[float, tuple[TokenKey, ...]]] = {}

    async def keys(self, purpose: Purpose) -> tuple[TokenKey, ...]:
        """Those of a moment ago."""
        until, known = self._known.get(purpose, (0.0, ()))
        if not known or until <= self._clock():
            known = await self._source.keys(purpose)
            self._known[purpose] = self._clock() + self._remember_s, known
        return known


@attrs.frozen
class Links:
    """Makes links to one server's services and files.

    Attributes:
        site: Its addresses.
        keys: What it signs with.
        clock: Seconds since the epoch.
    """

    site: ServiceSite
    keys: Keys
    clock: Callable[[], float] = time.time

    async def service(self, sandbox_id: str, tenant: str, port: int, expires_in_seconds: int) -> ServiceGrant:
        """A link to a service."""
        expires_at = self.clock() + expires_in_seconds
        claims = ServiceClaims(sandbox_id=sandbox_id, port=port, tenant=tenant, expires_at=expires_at)
        token = issue_service(claims, (await self.keys.keys("service"))[0])
        return ServiceGrant(
            browser_url=self.site.browser_url(sandbox_id, port, token),
            service_url=self.site.service_url(sandbox_id, port),
            token=token,
            expires_at=_iso(expires_at),
        )

    async def download(self, sandbox_id: str, tenant: str, request: CreateDownloadLink) -> DownloadURL:
        """A link to a file."""
        seconds = request.expires_in_seconds
        expires_at = None if seconds is None else self.clock() + seconds
        claims = DownloadClaims(
            sandbox_id=sandbox_id,
            path=request.path,
            tenant=tenant,
            content_type=request.content_type,
            disposition=request.content_disposition or "attachment",
            expires_at=expires_at,
        )
        token = issue_download(claims, (await self.keys.keys("download"))[0])
        return DownloadURL(
            download_url=self.site.download_url(sandbox_id, request.path, token),
            token=token,
            expires_at=None if expires_at is None else _iso(expires_at),
        )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
