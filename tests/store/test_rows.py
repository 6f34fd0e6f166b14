from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from sandboxrt.errors import (
    QuotaExceededError,
    ResourceAlreadyExistsError,
    ResourceInUseError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    SandboxNotReadyError,
    ValidationError,
)
from sandboxrt.models import Isolation, Limits
from sandboxrt.store import UID_BLOCK_BASE, UID_BLOCK_COUNT, UID_BLOCK_SIZE, SandboxRow, Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "state") as opened:
        yield opened


async def ready_snapshot(store: Store, name: str = "base") -> str:
    row = await store.add_snapshot(name=name, kind="image", fs_capacity_bytes=1)
    return (await store.finish_snapshot(row.id, content="{}")).id


async def add(store: Store, name: str, snapshot_id: str | None = None) -> SandboxRow:
    return await store.add_sandbox(name=name, snapshot_id=snapshot_id or await ready_snapshot(store), limits=Limits())


async def test_a_sandbox_comes_back_as_it_was_added(store: Store) -> None:
    snapshot_id = await ready_snapshot(store)
    added = await store.add_sandbox(
        name="one",
        snapshot_id=snapshot_id,
        limits=Limits(vcpus=0.5, mem_bytes=None, pids=7),
        require=frozenset({Isolation.SECCOMP, Isolation.UID_BLOCK}),
        allow_unenforced_limits=True,
        ttl_seconds=0,
        idle_ttl_seconds=600,
        env={"KEY": "välue", "secret": "hunter2"},
    )
    for key in ("one", added.id, added.engine_id):
        assert await store.find_sandbox(key) == added
    assert added.status == "provisioning" and added.owner_id == store.owner_id
    assert added.limits == Limits(vcpus=0.5, mem_bytes=None, pids=7)
    assert added.require == frozenset({Isolation.SECCOMP, Isolation.UID_BLOCK})
    assert (added.ttl_seconds, added.idle_ttl_seconds, added.allow_unenforced_limits) == (0, 600, True)
    assert added.env == {"KEY": "välue", "secret": "hunter2"} and "hunter2" not in repr(added)
    assert re.fullmatch(r"[0-9a-f]{32}", added.engine_id) and re.fullmatch(r"[0-9a-f-]{36}", added.id)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", added.created_at)


async def test_names_are_unique(store: Store) -> None:
    one = await add(store, "one")
    await add(store, "two")
    with pytest.raises(ResourceAlreadyExistsError, match="'one' already exists") as caught:
        await add(store, "one")
    assert caught.value.resource_type == "sandbox"
    with pytest.raises(ResourceNameConflictError):
        await store.update_sandbox("two", new_name="one")
    assert (await store.update_sandbox("one", new_name="one")).id == one.id
    renamed = await store.update_sandbox(one.id, new_name="three", ttl_seconds=60)
    assert (renamed.name, renamed.ttl_seconds, renamed.idle_ttl_seconds) == ("three", 60, None)
    assert [row.name for row in await store.list_sandboxes()] == ["three", "two"]


async def test_a_name_that_is_another_s_id_means_the_name(store: Store) -> None:
    one = await add(store, "one")
    two = await add(store, one.id)
    assert (await store.find_sandbox(one.id)).id == two.id
    assert (await store.find_sandbox(one.engine_id)).id == one.id


async def test_status(store: Store) -> None:
    await add(store, "one")
    row = await store.set_sandbox_status("one", "failed", "no luck")
    assert (row.status, row.status_message) == ("failed", "no luck")
    assert (await store.set_sandbox_status("one", "ready")).status_message is None
    with pytest.raises(ResourceNotFoundError) as caught:
        await store.set_sandbox_status("two", "ready")
    assert caught.value.resource_type == "sandbox"


async def test_uid_blocks_are_any_that_are_free(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot_id = await ready_snapshot(store)
    rows = [await add(store, f"s{number}", snapshot_id) for number in range(5)]
    numbers, rests = zip(*(divmod(row.uid_base - UID_BLOCK_BASE, UID_BLOCK_SIZE) for row in rows), strict=True)
    assert len(set(numbers)) == 5 and set(rests) == {0} and 0 <= min(numbers) <= max(numbers) < UID_BLOCK_COUNT
    assert sorted(numbers) != list(range(min(numbers), min(numbers) + 5)), "nobody could tell which others have"
    monkeypatch.setattr("secrets.randbelow", lambda _: numbers[0])
    after = (await add(store, "next", snapshot_id)).uid_base
    assert after not in {row.uid_base for row in rows}
    await store.remove_sandbox("s0")
    assert (await add(store, "again", snapshot_id)).uid_base == rows[0].uid_base


async def test_no_block_is_left(store: Store, tmp_path: Path) -> None:
    import sqlite3

    snapshot_id = await ready_snapshot(store)
    await add(store, "last", snapshot_id)
    with sqlite3.connect(tmp_path / "state" / "state.db") as db:
        # All but the last block taken, without that many rows of real size.
        db.execute("UPDATE sandboxes SET uid_block = 0")
        db.executemany(
            "INSERT INTO sandboxes (id, tenant, name, owner_id, snapshot_id, status, uid_block, limits,"
            " allow_unenforced_limits, env, labels, keep, created_at, updated_at)"
            " SELECT 'id' || ?1, '', 'name' || ?1, owner_id, snapshot_id, status, ?1, limits, 0, env, labels, 0,"
            " created_at, updated_at FROM sandboxes WHERE uid_block = 0",
            [(number,) for number in range(1, UID_BLOCK_COUNT - 1)],
        )
    row = await add(store, "fits", snapshot_id)
    assert row.uid_base + UID_BLOCK_SIZE == 0x80000000
    with pytest.raises(QuotaExceededError) as caught:
        await add(store, "one too many", snapshot_id)
    assert caught.value.quota_type == "sandbox_count"
    await store.remove_sandbox("last")
    assert (await add(store, "again", snapshot_id)).uid_base == UID_BLOCK_BASE


async def test_a_sandbox_needs_a_ready_snapshot(store: Store) -> None:
    with pytest.raises(ResourceNotFoundError) as caught:
        await add(store, "one", "nothing")
    assert caught.value.resource_type == "snapshot"
    building = await store.add_snapshot(name="b", kind="image", fs_capacity_bytes=1)
    with pytest.raises(SandboxNotReadyError):
        await add(store, "one", building.id)
    assert await store.list_sandboxes() == ()


async def test_removing_is_idempotent(store: Store) -> None:
    row = await add(store, "one")
    await store.remove_sandbox(row.id)
    await store.remove_sandbox(row.id)
    with pytest.raises(ResourceNotFoundError):
        await store.find_sandbox("one")


async def test_the_newest_ready_snapshot_of_a_name(store: Store) -> None:
    first = await ready_snapshot(store, "name")
    second = await ready_snapshot(store, "name")
    failed = await store.add_snapshot(name="name", kind="image", fs_capacity_bytes=1)
    await store.fail_snapshot(failed.id, "no luck", "ImagePull")
    assert (await store.find_snapshot("name")).id == second
    assert (await store.find_snapshot(first)).id == first
    assert (await store.find_snapshot(first.replace("-", ""))).id == first
    found = await store.find_snapshot(failed.id)
    assert (found.status, found.status_message, found.error_type) == ("failed", "no luck", "ImagePull")
    with pytest.raises(ResourceNotFoundError):
        await store.find_snapshot("nam")


async def test_only_what_is_being_built_can_end(store: Store) -> None:
    ready = await ready_snapshot(store)
    for attempt in (store.finish_snapshot(ready, content="{}"), store.fail_snapshot(ready, "x")):
        with pytest.raises(ResourceNotFoundError):
            await attempt


async def test_pages_of_snapshots(store: Store) -> None:
    ids = [await ready_snapshot(store, name) for name in ("Python-1", "ruby", "python-2", "100%_ÄÖ", "PYTHON3")]
    newest_first = ids[::-1]
    assert [row.id for row in await store.list_snapshots()] == newest_first
    assert [row.id for row in await store.list_snapshots(limit=2, offset=1)] == newest_first[1:3]
    assert [row.id for row in await store.list_snapshots(offset=4)] == newest_first[4:]
    assert await store.list_snapshots(offset=5) == ()
    assert [row.name for row in await store.list_snapshots(name_contains="pyTHON")] == [
        "PYTHON3",
        "python-2",
        "Python-1",
    ]
    assert [row.name for row in await store.list_snapshots(name_contains="%_äö")] == ["100%_ÄÖ"]
    assert await store.list_snapshots(name_contains="%") == await store.list_snapshots(name_contains="100")
    for _ in range(60):
        await ready_snapshot(store)
    assert len(await store.list_snapshots()) == 50
    assert len(await store.list_snapshots(limit=500)) == 65


@pytest.mark.parametrize(
    ("field", "value"), [("limit", 0), ("limit", 501), ("limit", -1), ("offset", -1), ("offset", 2**63)]
)
async def test_pages_out_of_range(store: Store, field: str, value: int) -> None:
    with pytest.raises(ValidationError) as caught:
        await store.list_snapshots(**{field: value})
    assert caught.value.field == field


async def test_a_used_snapshot_stays(store: Store) -> None:
    snapshot_id = await ready_snapshot(store)
    for number in range(12):
        await add(store, f"s{number:02}", snapshot_id)
    with pytest.raises(ResourceInUseError, match=r"s00, s01, .* and 2 more") as caught:
        await store.remove_snapshot(snapshot_id)
    assert caught.value.used_by == tuple(f"s{number:02}" for number in range(12))
    for row in await store.list_sandboxes():
        await store.remove_sandbox(row.id)
    assert (await store.remove_snapshot(snapshot_id)).id == snapshot_id
    with pytest.raises(ResourceNotFoundError):
        await store.remove_snapshot(snapshot_id)


async def test_many_tasks_at_once(store: Store) -> None:
    snapshot_id = await ready_snapshot(store)
    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(add, store, f"s{number}", snapshot_id)
    bases = {row.uid_base for row in await store.list_sandboxes()}
    assert len(bases) == 200


async def test_cancelled_means_all_or_nothing(store: Store) -> None:
    snapshot_id = await ready_snapshot(store)
    for number in range(50):
        with trio.move_on_after(number * 0.00005) as scope:
            await add(store, f"s{number}", snapshot_id)
        found = [row for row in await store.list_sandboxes() if row.name == f"s{number}"]
        assert len(found) <= 1 and (found or scope.cancelled_caught)
    assert (await add(store, "afterwards", snapshot_id)).name == "afterwards"


async def test_when_a_sandbox_was_last_active(store: Store) -> None:
    row = await add(store, "one")
    assert row.last_active_at is None
    ready = await store.set_sandbox_status(row.id, "ready", idle_for_s=0)
    assert ready.last_active_at == ready.updated_at
    await store.note_activity(row.id, 90.0)
    noted = await store.find_sandbox("one")
    assert noted.last_active_at is not None and noted.last_active_at < ready.last_active_at
    assert noted.updated_at == ready.updated_at
    assert (await store.set_sandbox_status(row.id, "stopped")).last_active_at is None
    await store.remove_sandbox(row.id)
    await store.note_activity(row.id, 1.0)
