"""Quotas over HTTP: the answer that official clients understand, at once, for each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from sandboxrt import AsyncSandboxClient
from sandboxrt.errors import QuotaExceededError
from sandboxrt.models import Quota
from tests.server.app_kit import API, detail, site


async def limit(here: Any, tenant: str, quota: Quota) -> None:
    key = next(key for key in await here.keys.list() if key.tenant == tenant)
    await here.keys.change_quota(key.id, quota)


@pytest.mark.parametrize(
    ("quota", "kind"),
    [
        (Quota(sandboxes=2), "sandbox_count"),
        (Quota(vcpus=2), "cpu"),
        (Quota(mem_bytes=2 * 2**30), "memory"),
        (Quota(storage_bytes=8 * 2**30), "storage"),
    ],
)
async def test_one_too_many(tmp_path: Path, quota: Quota, kind: str) -> None:
    fields = {"vcpus": 1, "mem_bytes": 2**30, "fs_capacity_bytes": 4 * 2**30}
    async with site(tmp_path) as here:
        await limit(here, "acme", quota)
        for name in ("one", "two"):
            await here.box(name, **fields)
        await here.acme.post("/boxes/one/stop", json={})
        answer = await here.acme.post("/boxes", json={"name": "three", **fields})
        assert detail(answer, 429)["error"] == "QuotaExceeded"
        assert answer.headers["retry-after"] == "0"
        url = f"http://127.0.0.1:{here.server.port}{API}"
        async with AsyncSandboxClient(api_endpoint=url, api_key=here.secret) as client:
            with pytest.raises(QuotaExceededError) as caught:
                await client.create_sandbox(
                    name="three", vcpus=1, mem_bytes=2**30, fs_capacity_bytes=4 * 2**30, timeout=10
                )
        assert caught.value.quota_type == kind
        # What is stopped still has its place, so it wakes; and others have theirs.
        assert (await here.acme.post("/boxes/one/start", json={})).status_code == 202
        await here.box("three", here.other, **fields)
        assert (await here.acme.delete("/boxes/two")).status_code == 204
        await here.box("three", **fields)


async def test_many_at_once(tmp_path: Path) -> None:
    codes: list[int] = []
    async with site(tmp_path) as here:
        await limit(here, "acme", Quota(sandboxes=3))

        async def create(name: str) -> None:
            codes.append((await here.acme.post("/boxes", json={"name": name})).status_code)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(create, f"box-{number}")
        assert sorted(codes) == [201] * 3 + [429] * 9
        listed = (await here.acme.get("/boxes")).json()["sandboxes"]
        assert {box["status"] for box in listed} == {"ready"} and len(listed) == 3
