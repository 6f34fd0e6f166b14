"""Snapshots over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.app_kit import detail, faults, site


async def test_lists(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        for number in range(52):
            await here.snapshot(f"{'odd' if number % 2 else 'even'}-{number}")

        async def listed(query: str = "") -> list[str]:
            answer = await here.acme.get("/snapshots" + query)
            assert answer.status_code == 200, answer.text
            assert answer.json()["items"] == answer.json()["snapshots"]
            return [snapshot["name"] for snapshot in answer.json()["snapshots"]]

        assert len(await listed()) == 50
        assert len(await listed("?limit=1")) == 1 and len(await listed("?limit=500")) == 52
        assert len(await listed("?name_contains=ODD")) == 26
        first = (await here.acme.get("/snapshots?limit=30")).json()
        rest = await listed(f"?limit=30&offset={first['offset']}")
        assert len({snapshot["name"] for snapshot in first["snapshots"]} | set(rest)) == 52
        assert (await here.acme.get("/snapshots?limit=52")).json()["offset"] == 0


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=-1", "limit=x", "offset=-1", "limit=1e2"])
async def test_limits_out_of_range(tmp_path: Path, query: str) -> None:
    async with site(tmp_path) as here:
        assert list(faults(await here.acme.get(f"/snapshots?{query}"))) == [f"query.{query.split('=')[0]}"]


async def test_references_and_tags(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        first = await here.snapshot("team/app", tag="v1")
        second = await here.snapshot("team/app", tag="v2")
        for reference, made in (
            (first["id"], first), ("team%2Fapp:v1", first), ("team%2Fapp:v2", second), ("team/app:v2", second),
        ):  # fmt: skip
            assert (await here.acme.get(f"/snapshots/{reference}")).json()["id"] == made["id"]
        moved = await here.snapshot("team/app", tag="v1")
        tags = (await here.acme.get("/snapshots-by-name/team%2Fapp")).json()
        assert tags["name"] == "team/app"
        assert {tag["tag"]: tag["snapshot_id"] for tag in tags["tags"]} == {"v1": moved["id"], "v2": second["id"]}
        assert (await here.acme.get(f"/snapshots/{first['id']}")).json()["tags"] == []
        assert detail(await here.acme.get("/snapshots-by-name/team%2Fapp:v1"), 400)["error"] == "InvalidRequest"
        detail(await here.acme.get("/snapshots-by-name/nothing"), 404)


async def test_deleting(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        made = await here.snapshot("app")
        await here.box("box", snapshot_id=made["id"])
        assert detail(await here.acme.delete(f"/snapshots/{made['id']}"), 409)["error"] == "InUse"
        detail(await here.acme.delete("/snapshots/app"), 404)
        assert (await here.acme.delete("/boxes/box")).status_code == 204
        assert (await here.acme.delete(f"/snapshots/{made['id']}")).status_code == 204
        detail(await here.acme.delete(f"/snapshots/{made['id']}"), 404)
