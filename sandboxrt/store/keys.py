"""API keys and the tenants that they speak for, in the database of a state folder.

A key is ``srt_<id>_<secret>``; the secret has 256 random bits, so a plain SHA-256 of the whole is all that needs to be
kept, and a key is shown once, when it is made.

Source: ours.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import sqlite3
import uuid
from datetime import UTC, datetime
from typing import Final

import attrs

from sandboxrt.errors import ResourceNotFoundError, ValidationError
from sandboxrt.models import Quota
from sandboxrt.store.store import Store

__all__ = ["DEFAULT_TENANT", "ApiKey", "KeyRecords", "NewKey", "key_id"]

DEFAULT_TENANT: Final = "default"
_KEY: Final = re.compile(r"srt_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_MAX_LABEL: Final = 200


@attrs.frozen(kw_only=True)
class ApiKey:
    """What is known of a key; never the key itself.

    Attributes:
        id: The part of the key that may be seen.
        tenant_id: Whom it speaks for, as sandboxes and snapshots record it.
        tenant: That tenant's name.
        label: What its creator wrote on it.
        created_at: ISO-8601, UTC. ``revoked_at`` likewise, ``None`` while it is good.
        quota: What the tenant's sandboxes may take, where this key makes one more; over the server's own.
    """

    id: str
    tenant_id: str
    tenant: str
    label: str
    created_at: str
    revoked_at: str | None
    quota: Quota = attrs.field(factory=Quota)


@attrs.frozen
class NewKey:
    """A key that was just made: the only time that ``secret``, which is the whole key, can be seen."""

    key: ApiKey
    secret: str = attrs.field(repr=False)


def key_id(key: str) -> str | None:
    """The id within a key, or ``None`` for what is no key."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None


@attrs.frozen
class KeyRecords:
    """The keys of a state folder. Every coroutine is one transaction."""

    store: Store

    async def create(self, tenant: str = DEFAULT_TENANT, label: str = "", quota: Quota | None = None) -> NewKey:
        """Make a key, and its tenant where that is new.

        Raises:
            ValidationError: The tenant's name or the label cannot be.
        """
        if not _TENANT.fullmatch(tenant):
            raise ValidationError(
                f"Tenant name {tenant!r} is not possible: use 1 to 63 letters, digits, '-', '_' or '.', "
                "beginning with a letter or digit",
                "tenant",
            )
        if len(label) > _MAX_LABEL or not label.isprintable():
            raise ValidationError(f"A key's label has at most {_MAX_LABEL} printable characters", "label")
        identifier = secrets.token_hex(6)
        secret = f"srt_{identifier}_{secrets.token_urlsafe(32)}"
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

        def create(db: sqlite3.Connection) -> ApiKey:
            db.execute("INSERT OR IGNORE INTO tenants VALUES (?, ?, ?)", (str(uuid.uuid4()), tenant, stamp))
            (tenant_id,) = db.execute("SELECT id FROM tenants WHERE name = ?", (tenant,)).fetchone()
            db.execute(
                "INSERT INTO api_keys (id, tenant_id, label, hash, created_at, quota) VALUES (?, ?, ?, ?, ?, ?)",
                (identifier, tenant_id, label, _hash(secret), stamp, _to_text(quota or Quota())),
            )
            return _select(db, "k.id = ?", identifier)[0]

        return NewKey(await self.store.transact(create), secret)

    async def list(self) -> tuple[ApiKey, ...]:
        """Every key, revoked ones too, oldest first."""
        return await self.store.transact(lambda db: _select(db, "?", 1), write=False)

    async def change_quota(self, identifier: str, quota: Quota, *, reset: bool = False) -> ApiKey:
        """Change what a key's quota says; what ``quota`` does not say stays, or with ``reset`` is said no more.

        Raises:
            ResourceNotFoundError: There is no key of that id.
        """

        def change(db: sqlite3.Connection) -> ApiKey:
            key = _one(db, identifier)
            wanted = quota if reset else quota.over(key.quota)
            db.execute("UPDATE api_keys SET quota = ? WHERE id = ?", (_to_text(wanted), identifier))
            return attrs.evolve(key, quota=wanted)

        return await self.store.transact(change)

    async def revoke(self, identifier: str) -> ApiKey:
        """Make a key useless, for good; harmless when it is.

        Raises:
            ResourceNotFoundError: There is no key of that id.
        """
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

        def revoke(db: sqlite3.Connection) -> ApiKey:
            db.execute("UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (stamp, identifier))
            return _one(db, identifier)

        return await self.store.transact(revoke)

    async def verify(self, key: str) -> ApiKey | None:
        """Whose key it is, or ``None`` for one that is unknown, altered or revoked."""
        identifier = key_id(key)
        if identifier is None:
            return None
        given = _hash(key)

        def verify(db: sqlite3.Connection) -> ApiKey | None:
            found = db.execute(
                "SELECT hash FROM api_keys WHERE id = ? AND revoked_at IS NULL", (identifier,)
            ).fetchone()
            if found is None or not hmac.compare_digest(found[0], given):
                return None
            return _select(db, "k.id = ?", identifier)[0]

        return await self.store.transact(verify, write=False)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _to_text(quota: Quota) -> str:
    return json.dumps(attrs.asdict(quota, filter=lambda _, value: value is not None))


def _one(db: sqlite3.Connection, identifier: str) -> ApiKey:
    found = _select(db, "k.id = ?", identifier)
    if not found:
        raise ResourceNotFoundError(f"Key '{identifier}' not found; `sandboxrt keys list` has the ids", "key")
    return found[0]


def _select(db: sqlite3.Connection, where: str, argument: object) -> tuple[ApiKey, ...]:
    rows = db.execute(
        "SELECT k.id, k.tenant_id, t.name AS tenant, k.label, k.created_at, k.revoked_at, k.quota"  # noqa: S608
        f" FROM api_keys AS k JOIN tenants AS t ON t.id = k.tenant_id WHERE {where} ORDER BY k.rowid",
        (argument,),
    )
    return tuple(ApiKey(**{**dict(row), "quota": Quota(**json.loads(row["quota"]))}) for row in rows)
