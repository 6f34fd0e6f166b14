"""Named registries of a host, and what they are for: images are fetched with the logins that are stored there.

A password goes to the host of its own registry and to nobody else: an image of another host is refused before anything
is started, and the tool that fetches is given the login under that host's name alone.

Source: protocol.md §2.8; what a name without a host means is ours.
"""

from __future__ import annotations

from typing import Final

import attrs

from sandboxrt.errors import ValidationError
from sandboxrt.host.ports import RegistryStore
from sandboxrt.models import Registry, RegistryPage
from sandboxrt.protocol.image_names import image_host
from sandboxrt.protocol.registries import (
    CreateRegistry,
    ListRegistries,
    RegistryLogin,
    UpdateRegistry,
    cursor_after,
    cursor_start,
)
from sandboxrt.protocol.rest import CreateSnapshot
from sandboxrt.protocol.rest_fields import FOREIGN_TRANSPORTS, invalid

__all__ = ["Registries"]

_DEFAULT_LIMIT: Final = 50
_MAX_LIMIT: Final = 500
_DEFAULT_PAGE: Final = 20
_MAX_PAGE: Final = 100


@attrs.frozen
class Registries:
    """The named registries of a host, each tenant's for itself."""

    _records: RegistryStore

    async def create(self, request: CreateRegistry) -> Registry:
        """Make one.

        Raises:
            ResourceAlreadyExistsError: The tenant has one of that name.
            ValidationError: A value cannot be; ``field`` names it.
        """
        return await self._records.add(request)

    async def get(self, name_or_id: str, tenant: str = "") -> Registry:
        """One by its name, or else by its id. Raises ``ResourceNotFoundError``."""
        return await self._records.find(name_or_id, tenant)

    async def list(self, request: ListRegistries) -> RegistryPage:
        """A page of a tenant's, newest first.

        Raises:
            ValidationError: ``limit``, ``offset``, ``page_size`` or ``cursor`` cannot be; ``field`` names it.
        """
        by_cursor = request.cursor is not None or request.page_size is not None
        if by_cursor:
            size = _within("page_size", request.page_size, _DEFAULT_PAGE, 1, _MAX_PAGE)
            start, after = 0, None if request.cursor is None else cursor_start(request.cursor)
        else:
            size = _within("limit", request.limit, _DEFAULT_LIMIT, 1, _MAX_LIMIT)
            start, after = _within("offset", request.offset, 0, 0, 2**53), None
        # One more tells whether this is the end.
        found = await self._records.page(request.tenant, request.name_contains or "", size + 1, start, after)
        page, more = found[:size], len(found) > size
        items = tuple(registry for _, registry in page)
        if by_cursor:
            return RegistryPage(items, next_cursor=cursor_after(page[-1][0]) if more else None)
        return RegistryPage(items, offset=start + size if more else 0)

    async def update(self, name_or_id: str, change: UpdateRegistry, tenant: str = "") -> Registry:
        """Change one; builds that go on keep the login that they began with.

        Raises:
            ResourceNotFoundError: There is none such.
            ResourceNameConflictError: The tenant has another one of the new name.
            ValidationError: A value cannot be, or a stored password would go to another host.
        """
        return await self._records.change(name_or_id, tenant, change)

    async def delete(self, name_or_id: str, tenant: str = "") -> None:
        """Forget one and its password; snapshots that were built with it stay.

        Raises:
            ResourceNotFoundError: There is none such.
            ResourceInUseError: Snapshots are being built with it; ``used_by`` names them.
        """
        await self._records.remove(name_or_id, tenant)

    async def resolve(self, request: CreateSnapshot) -> CreateSnapshot:
        """A build request with the address and the login of the registry that it names, if it names one.

        Raises:
            ResourceNotFoundError: The tenant has no registry of that id.
            ValidationError: The image is another host's, or the request has a login of its own, too.
            ResourceCreationError: The stored password cannot be read; the message says what to do.
        """
        if request.registry_id is None:
            return request
        for field in ("registry_url", "registry_username", "registry_password"):
            if getattr(request, field) is not None:
                raise invalid("must not be given together with registry_id", field)
        login = await self._records.login(request.registry_id, request.tenant)
        registry, address = login.registry, login.address
        _check_host(request.docker_image, login)
        return attrs.evolve(
            request,
            registry_id=registry.id,
            registry_name=registry.name,
            registry_url=f"{'http' if address.plain else 'https'}://{address.prefix}",
            registry_username=registry.username,
            registry_password=login.password,
            tls_verify=False if address.plain and request.tls_verify is None else request.tls_verify,
        )


def _check_host(image: str, login: RegistryLogin) -> None:
    transport, colon, _ = image.partition(":")
    if colon and transport in FOREIGN_TRANSPORTS:
        raise invalid(f"must be an image of the registry that registry_id names, not '{transport}:'", "docker_image")
    host = image_host(image)
    if host is not None and not login.address.has(host):
        raise invalid(
            f"is of {host}, but registry '{login.registry.name}' is at {login.address.host}, and its login goes nowhere"
            " else: name the registry of that host, or leave registry_id out",
            "docker_image",
        )


def _within(field: str, value: int | None, default: int, low: int, high: int) -> int:
    if value is None:
        return default
    if not low <= value <= high:
        raise ValidationError(f"{field} must be between {low} and {high}, not {value}", field)
    return value
