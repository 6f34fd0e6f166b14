"""Listing of many snapshots: a page of ten thousand, by each client from the same server."""

from __future__ import annotations

import functools
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import trio

from benchmarks.report import Measurement
from benchmarks.samples import Case, interleave
from sandboxrt.store import KeyRecords, Store

__all__ = ["measure_listing"]

SNAPSHOTS: Final = 10_000
PAGE: Final = 50
_RARE: Final = SNAPSHOTS // (2 * PAGE)
"""One in so many has the word that is searched for: two pages of them."""
_WORD: Final = "NEEDLE"
_THEN: Final = "2026-01-02T03:04:05.678Z"


async def _fill(state_dir: Path) -> None:
    """Record snapshots of the only tenant; nothing of them is on disk, and listing looks at nothing there."""
    async with Store.open(state_dir) as store:
        (key,) = await KeyRecords(store).list()
        names = [f"needle/{n}" if n % _RARE == 0 else f"application/{n}" for n in range(SNAPSHOTS)]
        rows = [(str(uuid.uuid4()), name, store.owner_id, key.tenant_id, _THEN, _THEN) for name in names]

        def insert(db: sqlite3.Connection) -> None:
            db.executemany(
                "INSERT INTO snapshots (id, name, kind, status, owner_id, tenant, fs_capacity_bytes, fs_used_bytes,"
                " docker_image, content, created_at, updated_at)"
                " VALUES (?, ?, 'image', 'ready', ?, ?, 1073741824, 123456789, 'alpine:3.20', '{}', ?, ?)",
                rows,
            )

        await store.transact(insert)


def measure_listing(clients: Mapping[str, Any], state_dir: Path, rounds: int) -> list[Measurement]:
    """The newest page, and a page of those whose name has a word in it.

    Args:
        clients: By name; each takes the order ``listing``.
        state_dir: The server's state folder, which is filled beside the server.
        rounds: How often.
    """
    trio.run(_fill, state_dir)

    def measured(**order: Any) -> dict[str, list[float]]:
        asks: dict[str, Callable[[], float]] = {
            name: functools.partial(client.ask, "listing", count=PAGE, **order) for name, client in clients.items()
        }
        seconds = interleave({name: Case(ask, per_round=5) for name, ask in asks.items()}, rounds=rounds, warmup=1)
        return {name: [1000 * sample for sample in taken] for name, taken in seconds.items()}

    goal = "at most 25 ms"
    return [
        Measurement(
            f"first {PAGE} of {SNAPSHOTS:,} snapshots",
            "ms",
            measured(),
            goal,
            note="From the call to the list, from a server on this machine; all are one tenant's.",
        ),
        Measurement(
            f"first {PAGE} of {SNAPSHOTS:,} snapshots by a part of their names",
            "ms",
            measured(word=_WORD),
            goal,
            note=f"One name in {_RARE} has the word, in another case.",
        ),
    ]
