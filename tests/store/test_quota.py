"""Quotas in the database: never more than allowed, however many ask at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from sandboxrt.errors import QuotaExceededError, ResourceNotFoundError
from sandboxrt.models import Limits, Quota
from sandboxrt.store import KeyRecords, Store


@pytest.mark.parametrize(
    ("quota", "kind"),
    [
        (Quota(sandboxes=5), "sandbox_count"),
        (Quota(vcpus=2.5), "cpu"),
        (Quota(mem_bytes=5 * 2**30), "memory"),
        (Quota(storage_bytes=20 * 2**30), "storage"),
    ],
)
async def test_no_overshoot_by_two_owners(tmp_path: Path, quota: Quota, kind: str) -> None:
    made: list[str] = []
    refused: list[str | None] = []
    async with Store.open(tmp_path) as first, Store.open(tmp_path) as second:
        snapshot = await first.add_snapshot(name="base", kind="image", fs_capacity_bytes=1)
        await first.finish_snapshot(snapshot.id, content="{}")

        async def add(store: Store, name: str) -> None:
            limits = Limits(vcpus=0.5, mem_bytes=2**30, disk_bytes=4 * 2**30)
            try:
                row = await store.add_sandbox(
                    name=name, snapshot_id=snapshot.id, limits=limits, tenant="acme", quota=quota
                )
            except QuotaExceededError as error:
                refused.append(error.quota_type)
            else:
                made.append(row.id)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(add, (first, second)[number % 2], f"box-{number}")
        assert len(made) == 5
        assert refused == [kind] * 15
        # Stopped ones count; deleted ones do not; another tenant's never.
        await first.set_sandbox_status(made[0], "stopped")
        await add(first, "one-more")
        assert len(refused) == 16
        await first.add_sandbox(
            name="box", snapshot_id=snapshot.id, limits=Limits(vcpus=0.5), tenant="other", quota=quota
        )
        await first.remove_sandbox(made[0])
        await add(second, "one-more")
        assert len(made) == 6


async def test_a_keys_quota(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store:
        keys = KeyRecords(store)
        made = await keys.create("acme", quota=Quota(sandboxes=2, vcpus=1.5))
        assert (await keys.verify(made.secret)) == made.key
        changed = await keys.change_quota(made.key.id, Quota(sandboxes=0))
        assert changed.quota == Quota(sandboxes=0, vcpus=1.5)
        assert (await keys.list()) == (changed,)
        reset = await keys.change_quota(made.key.id, Quota(mem_bytes=1), reset=True)
        assert reset.quota == Quota(mem_bytes=1)
        with pytest.raises(ResourceNotFoundError, match="keys list"):
            await keys.change_quota("zzz", Quota(sandboxes=1))
