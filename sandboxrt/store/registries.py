"""Named registries in the database of a state folder: each tenant's for itself, their passwords sealed.

Source: protocol.md §2.8.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import attrs

from sandboxrt.errors import (
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceInUseError,
    ResourceNameConflictError,
    ResourceNotFoundError,
)
from sandboxrt.models import Registry
from sandboxrt.protocol.image_names import parse_registry_url
from sandboxrt.protocol.registries import (
    CreateRegistry,
    RegistryLogin,
    UpdateRegistry,
    changed,
    check_registry,
    provider_of,
)
from sandboxrt.store.rows import canonical_id
from sandboxrt.store.store import Store
from sandboxrt.store.vault import SealError, Vault

__all__ = ["RegistryRecords"]

_COLUMNS: Final = "id, name, url, username, created_at, created_by, updated_at, updated_by"


@attrs.frozen
class RegistryRecords:
    """The named registries of a state folder. Every coroutine is one transaction."""

    store: Store
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def add(self, request: CreateRegistry) -> Registry:
        """Record a registry.

        Raises:
            ResourceAlreadyExistsError: The tenant has one of that name.
            ValidationError: A value cannot be; ``field`` names it.
            ResourceCreationError: The key file holds no key.
        """
        check_registry(request)
        identifier, stamp = str(uuid.uuid4()), self._stamp()

        def add(db: sqlite3.Connection) -> Registry:
            if _select(db, "tenant = ? AND name = ?", request.tenant, request.name):
                raise ResourceAlreadyExistsError(f"Registry '{request.name}' already exists", "registry")
            sealed = self._sealed(identifier, request.name, request.url, request.password)
            db.execute(
                "INSERT INTO registries (id, tenant, name, url, username, password, created_at, created_by, updated_at,"
                " updated_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    identifier,
                    request.tenant,
                    request.name,
                    request.url,
                    request.username,
                    sealed,
                    stamp,
                    request.by,
                    stamp,
                    request.by,
                ),
            )
            return _select(db, "id = ?", identifier)[0][1]

        return await self.store.transact(add)

    async def find(self, name_or_id: str, tenant: str) -> Registry:
        """A tenant's registry. Raises ``ResourceNotFoundError``."""
        return await self.store.transact(lambda db: _find(db, name_or_id, tenant), write=False)

    async def page(
        self, tenant: str, name_contains: str, limit: int, offset: int, after: int | None
    ) -> tuple[tuple[int, Registry], ...]:
        """Some of a tenant's registries, newest first, each with its place in the order.

        Args:
            tenant: Whose.
            name_contains: Only names that contain this, upper and lower case alike.
            limit: At most so many.
            offset: So many are passed over.
            after: Only those after this place.
        """
        needle = name_contains.casefold()
        return await self.store.transact(
            lambda db: _select(
                db,
                "tenant = ?1 AND (?2 = '' OR instr(casefold(name), ?2) > 0) AND (?5 IS NULL OR seq < ?5)"
                " ORDER BY seq DESC LIMIT ?3 OFFSET ?4",
                tenant,
                needle,
                limit,
                offset,
                after,
            ),
            write=False,
        )

    async def change(self, name_or_id: str, tenant: str, change: UpdateRegistry) -> Registry:
        """Change a registry.

        Raises:
            ResourceNotFoundError: There is none such.
            ResourceNameConflictError: The tenant has another one of the new name.
            ValidationError: A value cannot be, or a stored password would go to another host.
            ResourceCreationError: The stored password cannot be read to be kept; the message says what to do.
        """
        stamp = self._stamp()

        def update(db: sqlite3.Connection) -> Registry:
            current = _find(db, name_or_id, tenant)
            stored = _password_of(db, current.id)
            new = changed(current, change, has_password=stored is not None)
            if new.name != current.name and _select(db, "tenant = ? AND name = ?", tenant, new.name):
                raise ResourceNameConflictError(f"Registry name '{new.name}' already in use", "registry")
            if change.password is not None:
                stored = self._sealed(current.id, new.name, new.url, change.password)
            db.execute(
                "UPDATE registries SET name = ?, url = ?, username = ?, password = ?, updated_at = ?, updated_by = ?"
                " WHERE id = ?",
                (new.name, new.url, new.username, stored, stamp, change.by, current.id),
            )
            return _select(db, "id = ?", current.id)[0][1]

        return await self.store.transact(update)

    async def remove(self, name_or_id: str, tenant: str) -> None:
        """Forget a registry and its password.

        Raises:
            ResourceNotFoundError: There is none such.
            ResourceInUseError: Snapshots are being built with it; ``used_by`` names them.
        """

        def remove(db: sqlite3.Connection) -> None:
            found = _find(db, name_or_id, tenant)
            rows = db.execute(
                "SELECT name FROM snapshots WHERE registry_id = ? AND status = 'building' ORDER BY seq", (found.id,)
            )
            if users := tuple(row[0] for row in rows):
                raise ResourceInUseError(
                    f"Registry '{found.name}' is in use: {', '.join(users)} is being built with it", "registry", users
                )
            db.execute("DELETE FROM registries WHERE id = ?", (found.id,))

        await self.store.transact(remove)

    async def login(self, registry_id: str, tenant: str) -> RegistryLogin:
        """A tenant's registry, by its id, with its password.

        Raises:
            ResourceNotFoundError: There is none such.
            ResourceCreationError: The password cannot be read; the message says what to do.
        """

        def read(db: sqlite3.Connection) -> RegistryLogin:
            found = _select(db, "tenant = ? AND id = ?", tenant, canonical_id(registry_id))
            if not found:
                raise _missing(registry_id)
            registry = found[0][1]
            sealed = _password_of(db, registry.id)
            return RegistryLogin(registry, None if sealed is None else self._opened(registry, sealed))

        return await self.store.transact(read, write=False)

    def _sealed(self, identifier: str, name: str, url: str, password: str | None) -> bytes | None:
        """A password as the database has it: bound to its registry and to the host that it was given for."""
        if password is None:
            return None
        content = {"registry": identifier, "origin": parse_registry_url(url).origin, "password": password}
        try:
            return Vault(self.store.state_dir).seal(json.dumps(content).encode())
        except SealError as error:
            raise ResourceCreationError(
                f"The password of registry '{name}' cannot be stored: {error}. Restore that file, or move it away: a"
                " new one is made, and the passwords of all registries are to be given anew.",
                "registry",
                "RegistryCredentials",
            ) from error

    def _opened(self, registry: Registry, sealed: bytes) -> str:
        try:
            content = json.loads(Vault(self.store.state_dir).open(sealed))
            if (content["registry"], content["origin"]) != (registry.id, parse_registry_url(registry.url).origin):
                raise SealError("it was stored for another registry")
            return str(content["password"])
        except SealError as error:
            raise ResourceCreationError(
                f"The password of registry '{registry.name}' cannot be read: {error}. Restore that file, or update the"
                " registry with its password.",
                "registry",
                "RegistryCredentials",
            ) from error

    def _stamp(self) -> str:
        return self.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _missing(name_or_id: str) -> ResourceNotFoundError:
    return ResourceNotFoundError(f"Registry '{name_or_id}' not found", "registry")


def _find(db: sqlite3.Connection, name_or_id: str, tenant: str) -> Registry:
    found = _select(db, "tenant = ? AND name = ?", tenant, name_or_id)
    found = found or _select(db, "tenant = ? AND id = ?", tenant, canonical_id(name_or_id))
    if not found:
        raise _missing(name_or_id)
    return found[0][1]


def _select(db: sqlite3.Connection, where: str, *arguments: object) -> tuple[tuple[int, Registry], ...]:
    rows = db.execute(f"SELECT seq, {_COLUMNS} FROM registries WHERE {where}", arguments)  # noqa: S608
    found = []
    for row in rows:
        values = dict(row)
        place = values.pop("seq")
        kind = {"provider": provider_of(values["url"]), "repository_search_mode": "NONE"}
        found.append((place, Registry(**values, **kind)))
    return tuple(found)


def _password_of(db: sqlite3.Connection, identifier: str) -> bytes | None:
    row = db.execute("SELECT password FROM registries WHERE id = ?", (identifier,)).fetchone()
    return None if row is None else row[0]
