"""The keys that service tokens and download links are signed with, in the database of a state folder.

The newest of a purpose signs. Those before it verify until they are retired: those of service tokens by themselves,
once no token of theirs can be good any more; those of downloads, which may be made to last for ever, by an operator.

Source: ours.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable
from typing import Final, Literal

import attrs

from sandboxrt.protocol.tokens import TokenKey
from sandboxrt.store.store import Store

__all__ = ["LinkKeys", "Purpose"]

Purpose = Literal["service", "download"]

_SIGNS_S: Final = 30 * 86400.0
"""How long a key signs service tokens before the next one takes over."""
_VERIFIES_S: Final = 2 * 86400.0
"""How much longer it verifies them: twice the longest life of one."""


@attrs.frozen
class LinkKeys:
    """The keys of a state folder. Every coroutine is one transaction."""

    store: Store
    clock: Callable[[], float] = time.time

    async def keys(self, purpose: Purpose) -> tuple[TokenKey, ...]:
        """Those that verify, the one that signs first; made where there is none, or it has signed for long enough."""
        now = self.clock()
        found = await self.store.transact(lambda db: _select(db, purpose), write=False)
        if found and (purpose == "download" or now < found[0][1] + _SIGNS_S):
            return tuple(key for key, _ in found)

        def renew(db: sqlite3.Connection) -> tuple[TokenKey, ...]:
            current = _select(db, purpose)
            if not current or now >= current[0][1] + _SIGNS_S:
                db.execute(
                    "DELETE FROM link_keys WHERE purpose = ? AND superseded_at < ?", (purpose, now - _VERIFIES_S)
                )
                _insert(db, purpose, now)
            return tuple(key for key, _ in _select(db, purpose))

        return await self.store.transact(renew)

    async def rotate(self, purpose: Purpose, *, retire: bool = False) -> TokenKey:
        """Have a new key sign from now on.

        Args:
            purpose: What is signed.
            retire: Forget the ones before, which makes everything useless that they have signed.
        """
        now = self.clock()

        def rotate(db: sqlite3.Connection) -> TokenKey:
            if retire:
                db.execute("DELETE FROM link_keys WHERE purpose = ?", (purpose,))
            _insert(db, purpose, now)
            return _select(db, purpose)[0][0]

        return await self.store.transact(rotate)


def _insert(db: sqlite3.Connection, purpose: Purpose, now: float) -> None:
    db.execute("UPDATE link_keys SET superseded_at = ? WHERE purpose = ? AND superseded_at IS NULL", (now, purpose))
    values = (secrets.token_hex(6), purpose, secrets.token_bytes(32), now)
    db.execute("INSERT INTO link_keys (id, purpose, secret, created_at) VALUES (?, ?, ?, ?)", values)


def _select(db: sqlite3.Connection, purpose: Purpose) -> list[tuple[TokenKey, float]]:
    rows = db.execute("SELECT id, secret, created_at FROM link_keys WHERE purpose = ? ORDER BY seq DESC", (purpose,))
    return [(TokenKey(row["id"], row["secret"]), row["created_at"]) for row in rows]
