"""The named registries of a host, in memory."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import attrs
import trio

from sandboxrt.errors import (
    ResourceAlreadyExistsError,
    ResourceInUseError,
    ResourceNameConflictError,
    ResourceNotFoundError,
)
from sandboxrt.models import Registry
from sandboxrt.protocol.registries import (
    CreateRegistry,
    RegistryLogin,
    UpdateRegistry,
    changed,
    check_registry,
    provider_of,
)

__all__ = ["MemoryRegistries"]


@attrs.define
class _Entry:
    place: int
    tenant: str
    registry: Registry
    password: str | None = attrs.field(repr=False)


class MemoryRegistries:
    """Implements :class:`sandboxrt.host.ports.RegistryStore`.

    Args:
        building: The names of the snapshots that are being built with the registry of an id.
    """

    def __init__(self, building: Callable[[str], tuple[str, ...]]) -> None:
        self._building = building
        self._entries: list[_Entry] = []
        self._places: Iterator[int] = itertools.count(1)

    async def add(self, request: CreateRegistry) -> Registry:
        """Record one."""
        await trio.lowlevel.checkpoint()
        check_registry(request)
        if self._named(request.name, request.tenant) is not None:
            raise ResourceAlreadyExistsError(f"Registry '{request.name}' already exists", "registry")
        stamp = _now()
        registry = Registry(
            id=str(uuid.uuid4()),
            name=request.name,
            url=request.url,
            username=request.username,
            provider=provider_of(request.url),
            repository_search_mode="NONE",
            created_at=stamp,
            created_by=request.by,
            updated_at=stamp,
            updated_by=request.by,
        )
        self._entries.append(_Entry(next(self._places), request.tenant, registry, request.password))
        return registry

    async def find(self, name_or_id: str, tenant: str) -> Registry:
        """By name or id."""
        await trio.lowlevel.checkpoint()
        return self._find(name_or_id, tenant).registry

    async def page(
        self, tenant: str, name_contains: str, limit: int, offset: int, after: int | None
    ) -> tuple[tuple[int, Registry], ...]:
        """Some of them."""
        await trio.lowlevel.checkpoint()
        needle = name_contains.casefold()
        found = [
            (entry.place, entry.registry)
            for entry in reversed(self._entries)
            if entry.tenant == tenant
            and needle in entry.registry.name.casefold()
            and (after is None or entry.place < after)
        ]
        return tuple(found[offset : offset + limit])

    async def change(self, name_or_id: str, tenant: str, change: UpdateRegistry) -> Registry:
        """Change one."""
        await trio.lowlevel.checkpoint()
        entry = self._find(name_or_id, tenant)
        new = changed(entry.registry, change, has_password=entry.password is not None)
        if self._named(new.name, tenant) not in (None, entry):
            raise ResourceNameConflictError(f"Registry name '{new.name}' already in use", "registry")
        entry.registry = attrs.evolve(new, updated_at=_now(), updated_by=change.by)
        entry.password = entry.password if change.password is None else change.password
        return entry.registry

    async def remove(self, name_or_id: str, tenant: str) -> None:
        """Forget one."""
        await trio.lowlevel.checkpoint()
        entry = self._find(name_or_id, tenant)
        if users := self._building(entry.registry.id):
            raise ResourceInUseError(
                f"Registry '{entry.registry.name}' is in use: {', '.join(users)} is being built with it",
                "registry",
                users,
            )
        self._entries.remove(entry)

    async def login(self, registry_id: str, tenant: str) -> RegistryLogin:
        """One by id, with its password."""
        await trio.lowlevel.checkpoint()
        for entry in self._entries:
            if (entry.tenant, entry.registry.id) == (tenant, registry_id.lower()):
                return RegistryLogin(entry.registry, entry.password)
        raise ResourceNotFoundError(f"Registry '{registry_id}' not found", "registry")

    def _named(self, name: str, tenant: str) -> _Entry | None:
        return next((e for e in self._entries if (e.tenant, e.registry.name) == (tenant, name)), None)

    def _find(self, name_or_id: str, tenant: str) -> _Entry:
        mine = [entry for entry in self._entries if entry.tenant == tenant]
        found = [entry for entry in mine if entry.registry.name == name_or_id]
        found += [entry for entry in mine if entry.registry.id == name_or_id.lower()]
        if not found:
            raise ResourceNotFoundError(f"Registry '{name_or_id}' not found", "registry")
        return found[0]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
