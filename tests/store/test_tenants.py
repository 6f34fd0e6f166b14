from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandboxrt.errors import (
    ResourceAlreadyExistsError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    ValidationError,
)
from sandboxrt.models import Limits, RunConfig
from sandboxrt.store import KeyRecords, Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "state") as opened:
        yield opened


async def ready(store: Store, name: str, tenant: str = "a", tag: str | None = None) -> str:
    row = await store.add_snapshot(
        name=name, kind="image", fs_capacity_bytes=1, tenant=tenant, tag=tag, run_config=RunConfig(user="bob")
    )
    return (await store.finish_snapshot(row.id, content="{}")).id


async def test_names_are_unique_within_a_tenant(store: Store) -> None:
    base = await ready(store, "base")
    first = await store.add_sandbox(name="box", snapshot_id=base, limits=Limits(), tenant="a")
    second = await store.add_sandbox(
        name="box",
        snapshot_id=base,
        limits=Limits(),
        tenant="b",
        labels={"k": "v"},
        run_config=RunConfig(work_dir="/srv", env_vars={"A": "1"}),
        keep=True,
        idempotency_key="once",
    )
    with pytest.raises(ResourceAlreadyExistsError):
        await store.add_sandbox(name="box", snapshot_id=base, limits=Limits(), tenant="a")
    assert (await store.find_sandbox("box", "a")).id == first.id
    assert await store.find_sandbox("box", "b") == second
    assert (second.labels, second.keep, second.idempotency_key) == ({"k": "v"}, True, "once")
    assert second.run_config == RunConfig(work_dir="/srv", env_vars={"A": "1"})
    with pytest.raises(ResourceNotFoundError):
        await store.find_sandbox("box")
    other = await store.add_sandbox(name="other", snapshot_id=base, limits=Limits(), tenant="a")
    with pytest.raises(ResourceNameConflictError):
        await store.update_sandbox(other.id, new_name="box")
    assert (await store.update_sandbox(second.id, new_name="other")).name == "other"


async def test_references_to_snapshots(store: Store) -> None:
    old = await ready(store, "app", tag="latest")
    new = await ready(store, "app", tag="v2")
    assert (await store.find_snapshot("app", "a")).id == old
    assert (await store.find_snapshot("app", "a", newest=True)).id == new
    assert (await store.find_snapshot("app:v2", "a")).id == new
    assert (await store.find_snapshot("app:v2", "a")).run_config == RunConfig(user="bob")
    newer = await ready(store, "app", tag="v2")
    assert (await store.find_snapshot("app:v2", "a")).id == newer
    assert (await store.find_snapshot(new, "a")).tags == ()
    assert await store.snapshot_tags("app", "a") == (("latest", old), ("v2", newer))
    for reference in ("app:none", "none", ":", "", old):
        with pytest.raises(ResourceNotFoundError):
            await store.find_snapshot(reference, "b")
    assert await store.list_snapshots(tenant="b") == ()
    with pytest.raises(ResourceNotFoundError):
        await store.snapshot_tags("app", "b")
    await store.remove_snapshot(newer)
    assert await store.snapshot_tags("app", "a") == (("latest", old),)


async def test_a_failed_build_takes_no_tag(store: Store) -> None:
    good = await ready(store, "app", tag="latest")
    row = await store.add_snapshot(name="app", kind="image", fs_capacity_bytes=1, tenant="a", tag="latest")
    assert (await store.find_snapshot("app", "a")).id == good
    await store.fail_snapshot(row.id, "no such image")
    assert (await store.find_snapshot("app:latest", "a")).id == good


async def test_the_next_owner_adopts_what_is_kept(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as dead:
        base = await ready(dead, "base")
        kept = await dead.add_sandbox(name="kept", snapshot_id=base, limits=Limits(), tenant="a", keep=True)
        await dead.set_sandbox_status(kept.id, "ready")
    async with Store.open(tmp_path) as store:
        assert await store.dead_owners() == (dead.owner_id,)
        with pytest.raises(ValueError, match="claim"):
            await store.adopt_sandboxes({kept.id: "stopped"})
        async with store.claim_owner(dead.owner_id) as claimed:
            assert claimed
            (row,) = await store.adopt_sandboxes({kept.id: "stopped"})
            await store.forget_owner(dead.owner_id)
        assert (row.status, row.owner_id) == ("stopped", store.owner_id)
        assert row.stopped_at
        assert await store.sandboxes_of(store.owner_id) == (row,)


async def test_keys(store: Store) -> None:
    keys = KeyRecords(store)
    made = await keys.create("acme", "ci")
    again = await keys.create("acme")
    other = await keys.create("umbrella")
    assert made.secret not in repr(made)
    assert made.key.tenant_id == again.key.tenant_id != other.key.tenant_id
    assert await keys.verify(made.secret) == made.key
    for wrong in ("", "x", made.secret[:-1] + "!", made.secret + "x", other.secret[:17] + made.secret[17:], "\udcff"):
        assert await keys.verify(wrong) is None
    assert made.secret.encode() not in (store.state_dir / "state.db").read_bytes()
    assert [key.id for key in await keys.list()] == [k.key.id for k in (made, again, other)]
    assert (await keys.revoke(made.key.id)).revoked_at is not None
    assert await keys.verify(made.secret) is None
    assert await keys.verify(again.secret) == again.key
    with pytest.raises(ResourceNotFoundError):
        await keys.revoke("nothing")
    for tenant, label in (("", ""), ("a b", ""), ("x" * 64, ""), ("ok", "line\n")):
        with pytest.raises(ValidationError):
            await keys.create(tenant, label)
