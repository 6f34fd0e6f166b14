"""What one machine knows about its sandboxes and snapshots: a SQLite file that several processes share.

Layout of a state folder: ``state.db`` (with its WAL beside it), ``identity`` (who it is on this machine) and
``owners/<owner_id>.lock``. Every open
:class:`Store` is an *owner*: it holds an advisory lock on a file of its own for as long as it lives, however it ends.
A sandbox belongs to the owner that added it. An owner whose lock is free is dead, and what it left may be cleaned by
whoever takes the lock first; nothing else is ever cleaned, so processes share a state folder without knowing of each
other.

Every coroutine is one transaction: cancelled before it starts it does nothing, and once started it completes.

Source: ours.
"""

from __future__ import annotations

from sandboxrt.store.database import SCHEMA_VERSION, run_blocking
from sandboxrt.store.identity import container_id
from sandboxrt.store.keys import DEFAULT_TENANT, ApiKey, KeyRecords, NewKey
from sandboxrt.store.link_keys import LinkKeys
from sandboxrt.store.registries import RegistryRecords
from sandboxrt.store.rows import (
    UID_BLOCK_BASE,
    UID_BLOCK_COUNT,
    UID_BLOCK_SIZE,
    SandboxRow,
    SnapshotRow,
    canonical_id,
)
from sandboxrt.store.store import Store

__all__ = [
    "DEFAULT_TENANT",
    "SCHEMA_VERSION",
    "UID_BLOCK_BASE",
    "UID_BLOCK_COUNT",
    "UID_BLOCK_SIZE",
    "ApiKey",
    "KeyRecords",
    "LinkKeys",
    "NewKey",
    "RegistryRecords",
    "SandboxRow",
    "SnapshotRow",
    "Store",
    "canonical_id",
    "container_id",
    "run_blocking",
]
