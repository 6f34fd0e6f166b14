"""State folders of every older schema are opened: all that was in them is there, and what fails changes nothing."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from sandboxrt.errors import SandboxClientError
from sandboxrt.models import Isolation, Limits, Quota, RunConfig
from sandboxrt.store import UID_BLOCK_BASE, UID_BLOCK_SIZE, KeyRecords, LinkKeys, SandboxRow, SnapshotRow, Store
from sandboxrt.store import database as database_module
from sandboxrt.store.database import _MIGRATIONS, SCHEMA_VERSION

VERSIONS = range(1, SCHEMA_VERSION)
BASE, SHOT, FAILED = (f"{digit * 8}-1111-4111-8111-111111111111" for digit in "123")
BOX, STOPPED = (f"{digit * 8}-2222-4222-8222-222222222222" for digit in "45")
TENANT = "66666666-3333-4333-8333-333333333333"
THEN, LATER = "2026-01-02T03:04:05.678Z", "2026-01-02T04:04:05.678Z"
LIMITS = Limits(vcpus=1.5, mem_bytes=2**28, pids=99, disk_bytes=2**30)
RUN = RunConfig(user="app", work_dir="/srv", env_vars={"A": "b"})
RUN_TEXT = '{"user": "app", "work_dir": "/srv", "env_vars": {"A": "b"}}'
CONTENT = '{"layers": [], "config": {}}'

SNAPSHOTS: tuple[Mapping[str, Any], ...] = (
    {
        "seq": 3,
        "id": BASE,
        "name": "base",
        "kind": "image",
        "status": "ready",
        "owner_id": "a" * 32,
        "fs_capacity_bytes": 2**31,
        "fs_used_bytes": 12345,
        "docker_image": "alpine:3.20",
        "image_digest": "sha256:abc",
        "content": CONTENT,
        "created_at": THEN,
        "updated_at": LATER,
        "tag": "v1",
        "run_config": RUN_TEXT,
    },
    {
        "seq": 5,
        "id": SHOT,
        "name": "shot",
        "kind": "capture",
        "status": "ready",
        "owner_id": "b" * 32,
        "fs_capacity_bytes": 2**31,
        "source_sandbox_id": BOX,
        "fingerprint": "f00",
        "content": CONTENT,
        "created_at": THEN,
        "updated_at": THEN,
        "base_id": BASE,
        "tenant": TENANT,
    },
    {
        "seq": 6,
        "id": FAILED,
        "name": "failed",
        "kind": "image",
        "status": "failed",
        "status_message": "no such image",
        "error_type": "ImagePull",
        "owner_id": "a" * 32,
        "fs_capacity_bytes": 1,
        "created_at": THEN,
        "updated_at": THEN,
    },
)
SANDBOXES: tuple[Mapping[str, Any], ...] = (
    {
        "seq": 2,
        "id": BOX,
        "name": "box",
        "owner_id": "a" * 32,
        "snapshot_id": BASE,
        "status": "ready",
        "uid_block": 4,
        "limits": json.dumps(attrs.asdict(LIMITS)),
        "require": json.dumps([Isolation.MEMORY_LIMIT.value]),
        "allow_unenforced_limits": 1,
        "ttl_seconds": 3600,
        "idle_ttl_seconds": 0,
        "env": '{"KEY": "value"}',
        "created_at": THEN,
        "updated_at": LATER,
        "tenant": "",
        "labels": '{"team": "x"}',
        "keep": 0,
        "idempotency_key": "k1",
        "lease_seconds": 60,
        "last_active_at": LATER,
        "moved_from": 9,
    },
    {
        "seq": 7,
        "id": STOPPED,
        "name": "rests",
        "owner_id": "b" * 32,
        "snapshot_id": SHOT,
        "status": "stopped",
        "status_message": "by its user",
        "uid_block": 0,
        "limits": json.dumps(attrs.asdict(LIMITS)),
        "allow_unenforced_limits": 0,
        "env": "{}",
        "created_at": THEN,
        "updated_at": THEN,
        "tenant": TENANT,
        "labels": "{}",
        "run_config": RUN_TEXT,
        "delete_after_stop_seconds": 120,
        "keep": 1,
        "stopped_at": LATER,
    },
)
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "tenants": {"id": TENANT, "name": "acme", "created_at": THEN},
    "api_keys": {
        "id": "0123456789ab",
        "tenant_id": TENANT,
        "label": "ci",
        "hash": "00ff",
        "created_at": THEN,
        "revoked_at": LATER,
        "quota": '{"sandboxes": 3}',
    },
    "snapshot_tags": {"tenant": "", "name": "base", "tag": "v1", "snapshot_id": BASE},
    "link_keys": {
        "seq": 9,
        "id": "c0ffee",
        "purpose": "download",
        "secret": b"s" * 32,
        "created_at": 1.5,
    },
}


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(folder / "state.db", isolation_level=None)) as db:
        yield db


def columns(db: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in db.execute(f"PRAGMA table_info({table})")}


def make(folder: Path, version: int) -> dict[str, set[str]]:
    """A state folder as the program with that schema left it; the columns that each table had."""
    folder.mkdir()
    (folder / "owners").mkdir()
    with opened(folder) as db:
        db.execute("PRAGMA journal_mode = WAL")
        for statements in _MIGRATIONS[:version]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {version}")
        tables = {"snapshots": SNAPSHOTS, "sandboxes": SANDBOXES, **{name: (row,) for name, row in OTHERS.items()}}
        had = {table: columns(db, table) for table in tables}
        for table, rows in tables.items():
            for row in rows if had[table] else ():
                known = {name: value for name, value in row.items() if name in had[table]}
                places = ", ".join("?" * len(known))
                db.execute(f"INSERT INTO {table} ({', '.join(known)}) VALUES ({places})", tuple(known.values()))
        return had


def dump(folder: Path) -> tuple[int, list[str]]:
    with opened(folder) as db:
        return db.execute("PRAGMA user_version").fetchone()[0], list(db.iterdump())


def expected_snapshot(row: Mapping[str, Any], had: Mapping[str, set[str]]) -> SnapshotRow:
    known = {name: value for name, value in row.items() if name in had["snapshots"] and name != "seq"}
    optional = (
        "status_message",
        "error_type",
        "fs_used_bytes",
        "docker_image",
        "image_digest",
        "source_sandbox_id",
        "fingerprint",
        "content",
    )
    tags = ("v1",) if row["id"] == BASE and had["snapshot_tags"] else ()
    return SnapshotRow(**{**dict.fromkeys(optional), **known, "tags": tags})


def expected_sandbox(row: Mapping[str, Any], had: Mapping[str, set[str]]) -> SandboxRow:
    values = {name: value for name, value in row.items() if name in had["sandboxes"] and name != "seq"}
    require = values.get("require")
    values |= {
        "uid_base": UID_BLOCK_BASE + values.pop("uid_block") * UID_BLOCK_SIZE,
        "moved_from": None if values.get("moved_from") is None else UID_BLOCK_BASE + 9 * UID_BLOCK_SIZE,
        "limits": LIMITS,
        "require": None if require is None else frozenset(Isolation(word) for word in json.loads(require)),
        "env": json.loads(values["env"]),
        "labels": json.loads(values.get("labels", "{}")),
        "run_config": RUN if "run_config" in values else None,
        "allow_unenforced_limits": bool(values["allow_unenforced_limits"]),
        "keep": bool(values.get("keep", False)),
    }
    return SandboxRow(**{**dict.fromkeys(("status_message", "ttl_seconds", "idle_ttl_seconds")), **values})


@pytest.mark.parametrize("version", VERSIONS)
async def test_everything_is_there(tmp_path: Path, version: int) -> None:
    had = make(tmp_path / "state", version)
    async with Store.open(tmp_path / "state") as store:
        assert await store.list_sandboxes() == tuple(expected_sandbox(row, had) for row in SANDBOXES)
        assert await store.snapshots_where() == tuple(expected_snapshot(row, had) for row in reversed(SNAPSHOTS))
        await _check_keys(store, had)
        # What the new program does with it works as on its own.
        snapshot = await store.find_snapshot("base")
        added = await store.add_sandbox(name="new", snapshot_id=snapshot.id, limits=LIMITS, tenant="other", keep=True)
        assert added.uid_base not in {UID_BLOCK_BASE, UID_BLOCK_BASE + 4 * UID_BLOCK_SIZE}, "those are taken"
        assert (await store.list_sandboxes())[-1] == added
        await store.remove_sandbox(added.id)
    version_now, _ = dump(tmp_path / "state")
    assert version_now == SCHEMA_VERSION


async def _check_keys(store: Store, had: Mapping[str, set[str]]) -> None:
    keys = await KeyRecords(store).list()
    if had["api_keys"]:
        (key,) = keys
        assert (key.id, key.tenant_id, key.tenant, key.label) == ("0123456789ab", TENANT, "acme", "ci")
        assert (key.created_at, key.revoked_at) == (THEN, LATER)
        assert key.quota == (Quota(sandboxes=3) if "quota" in had["api_keys"] else Quota())
    else:
        assert keys == ()
    (download,) = await LinkKeys(store).keys("download")
    assert (download.id == "c0ffee") is bool(had["link_keys"])


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_schema_is_that_of_a_new_folder(tmp_path: Path, version: int) -> None:
    make(tmp_path / "old", version)
    for name in ("old", "new"):
        async with Store.open(tmp_path / name):
            pass

    def schema(folder: Path) -> set[tuple[str, ...]]:
        with opened(folder) as db:
            tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            told = {(table, *map(str, row)) for table in tables for row in db.execute(f"PRAGMA table_info({table})")}
            keys = {(table, *map(str, r)) for table in tables for r in db.execute(f"PRAGMA foreign_key_list({table})")}
            return told | keys | set(db.execute("SELECT name, tbl_name FROM sqlite_master WHERE type = 'index'"))

    assert schema(tmp_path / "old") == schema(tmp_path / "new")
    with opened(tmp_path / "old") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []


@pytest.mark.parametrize(
    ("version", "failing"), [(version, failing) for version in VERSIONS for failing in range(version, SCHEMA_VERSION)]
)
async def test_a_failure_in_the_middle_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, failing: int
) -> None:
    """Every migration before the failing one, and all of that one but its last step, were done: and are undone."""
    folder = tmp_path / "state"
    had = make(folder, version)
    before = dump(folder)
    steps = (*_MIGRATIONS[failing], "INSERT INTO nowhere VALUES (1)")
    broken = (*_MIGRATIONS[:failing], steps, *_MIGRATIONS[failing + 1 :])
    monkeypatch.setattr(database_module, "_MIGRATIONS", broken)
    with pytest.raises(SandboxClientError, match="nowhere") as caught:
        async with Store.open(folder):
            raise AssertionError("opened")
    assert str(folder) in str(caught.value)
    assert dump(folder) == before
    monkeypatch.undo()
    async with Store.open(folder) as store:
        assert await store.list_sandboxes() == tuple(expected_sandbox(row, had) for row in SANDBOXES)
